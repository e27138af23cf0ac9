"""Hand keys to applications: ETSI GS QKD 014 and the like come here."""
