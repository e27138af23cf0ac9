"""A key manager that asks a QKD link's two units before it takes keys from the link."""

from key_manager.admission import Verdict, admit

__all__ = ["Verdict", "admit"]
