"""Stands in for Swabian Instruments' library: the calls that its documentation describes, and no more.

A test puts tags into `tags` (type, channel, time in ps, missed) before or while a stream runs.
"""

import numpy as np

serials = ["2138000XYZ"]
tags = []
opened = []
deadtime_step_ps = 2000
fail = ""


def getVersion():
    return "2.22.6"


def createTimeTagger(serial=""):
    if not serials or (serial and serial not in serials) or opened:
        raise RuntimeError("No Time Tagger found")
    opened.append(TimeTagger(serial or serials[0]))
    return opened[-1]


def freeTimeTagger(tagger):
    opened.remove(tagger)


class TimeTagger:
    def __init__(self, serial):
        self.serial = serial
        self.level, self.dead, self.delay = {}, {}, {}
        self.synced = 0

    def getSerial(self):
        return self.serial

    def getModel(self):
        return "Time Tagger Ultra"

    def getChannelList(self):
        return [1, 2, 3, 4, -1, -2, -3, -4]

    def setTriggerLevel(self, channel, voltage):
        if fail:
            raise RuntimeError(fail)
        self.level[channel] = round(voltage * 1000 / 1.2) * 1.2 / 1000

    def getTriggerLevel(self, channel):
        return self.level.get(channel, 0.5004)

    def setDeadtime(self, channel, deadtime):
        self.dead[channel] = max(deadtime // deadtime_step_ps, 1) * deadtime_step_ps

    def getDeadtime(self, channel):
        return self.dead.get(channel, deadtime_step_ps)

    def setInputDelay(self, channel, delay):
        self.delay[channel] = int(delay)

    def getInputDelay(self, channel):
        return self.delay.get(channel, 0)

    def sync(self):
        self.synced += 1


class TimeTagStream:
    def __init__(self, tagger, n_max_events, channels):
        assert tagger in opened
        self.n_max_events, self.channels, self.running = n_max_events, channels, True

    def stop(self):
        self.running = False

    def getData(self):
        if fail:
            raise RuntimeError(fail)
        wanted = [tag for tag in tags if tag[0] != 0 or tag[1] in self.channels][: self.n_max_events]
        tags.clear()
        return TimeTagStreamBuffer(wanted)


class TimeTagStreamBuffer:
    def __init__(self, tags):
        columns = list(zip(*tags, strict=True)) or [(), (), (), ()]
        self.types, self.channels, self.times, self.missed = columns
        self.size = len(tags)

    def getTimestamps(self):
        return np.array(self.times, np.int64)

    def getChannels(self):
        return np.array(self.channels, np.int32)

    def getEventTypes(self):
        return np.array(self.types, np.uint8)

    def getMissedEvents(self):
        return np.array(self.missed, np.uint16)
