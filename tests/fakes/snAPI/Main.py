"""Stands in for PicoQuant's snAPI: the calls that its documentation describes, and no more.

A test puts records into `records` (time in ps, channel code) before or while a measurement runs.
"""

from enum import Enum

import numpy as np

serials = ["1045483"]
records = []
count_rates = [0, 0, 0, 0, 0]
held = []
finished = False
cfd_inputs = False


class MeasMode(Enum):
    Histogram = 0
    T2 = 2
    T3 = 3


class snAPI:
    def __init__(self, systemIni="system.ini"):
        self.deviceConfig = ()
        self.device = Device(self)
        self.unfold = Unfold(self)

    def getDevice(self, *dev):
        serial = dev[0] if dev else ""
        if held or not serials or (serial and serial not in serials):
            return False
        channel = {"TrigLvl": -50, "TrigEdge": 1, "ChanOffs": 0, "ChanEna": 1, "DeadTime": 800}
        self.deviceConfig = {
            "ID": serial or serials[0], "Model": "MultiHarp 150 4P", "Version": "1.0", "BaseResolution": 5.0, "NumChans": 4,
            "SyncTrigLvl": -50, "SyncTrigEdge": 1, "SyncChannelOffset": 0, "SyncChannelEnable": 1, "SyncDeadTime": 800,
            "ChansCfg": [{"Index": index, **channel} for index in range(4)],
        }  # fmt: skip
        held.append(self)
        return True

    def initDevice(self, measMode=MeasMode.T2):
        assert measMode is MeasMode.T2
        return True

    def getDeviceConfig(self):
        return True

    def getCountRates(self):
        return np.array(count_rates)

    def closeDevice(self, allDevices=True):
        assert allDevices is False
        held.remove(self)


class Device:
    def __init__(self, parent):
        self.parent = parent

    def _set(self, channel, **values):
        if channel is None:
            self.parent.deviceConfig |= values
        else:
            self.parent.deviceConfig["ChansCfg"][channel] |= values
        return True

    def setSyncEdgeTrig(self, trigLvl=-50, trigEdge=1):
        return not cfd_inputs and self._set(None, SyncTrigLvl=trigLvl, SyncTrigEdge=trigEdge)

    def setInputEdgeTrig(self, channel=-1, trigLvl=-50, trigEdge=1):
        return not cfd_inputs and self._set(channel, TrigLvl=trigLvl, TrigEdge=trigEdge)

    def setSyncChannelEnable(self, enable=1):
        return self._set(None, SyncChannelEnable=enable)

    def setInputChannelEnable(self, channel=-1, enable=1):
        return self._set(channel, ChanEna=enable)

    def setSyncDeadTime(self, deadTime=800):
        return self._set(None, SyncDeadTime=max(800, deadTime // 5 * 5))

    def setInputDeadTime(self, channel=-1, deadTime=800):
        return self._set(channel, DeadTime=max(800, deadTime // 5 * 5))

    def setSyncChannelOffset(self, offset=0):
        return self._set(None, SyncChannelOffset=offset // 5 * 5)

    def setInputChannelOffset(self, channel=-1, offset=0):
        return self._set(channel, ChanOffs=offset // 5 * 5)


class Unfold:
    def __init__(self, parent):
        self.parent = parent
        self.started = False

    def startBlock(self, acqTime=1000, size=134217728, savePTU=False):
        assert (acqTime, savePTU) == (0, False)
        self.size = size
        self.started = True
        self.times, self.channels = np.zeros(size, np.uint64), np.zeros(size, np.uint8)
        return bool(self.parent.deviceConfig)

    def getBlock(self):
        """Give views of memory that the next call overwrites, as the real one does."""
        assert self.started
        n = len(records)
        self.times[:n] = [time for time, _ in records]
        self.channels[:n] = [channel for _, channel in records]
        records.clear()
        return self.times[:n], self.channels[:n]

    def isFinished(self):
        return finished

    def stopMeasure(self):
        pass
