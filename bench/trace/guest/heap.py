"""A heap at work: objects of many sizes in dictionaries, lists and strings, replaced and changed at random.
The changes made so far stand in the first 8 bytes of /tmp/operations."""

import random
import struct
import time

random.seed(1)
store = {}
for key in range(60000):
    store[key] = {"name": "user %d" % key, "score": float(key), "tags": [key % 7, key % 11], "visits": 0}
counter = open("/tmp/operations", "w+b", buffering=0)
done = 0
while True:
    for _ in range(200):
        user = store[random.randrange(60000)]
        user["visits"] += 1
        user["score"] *= 1.01
        user["tags"].append(user["visits"])
        if len(user["tags"]) > 12:
            user["tags"] = user["tags"][-3:]
    for _ in range(40):
        key = random.randrange(60000)
        store[key] = {"name": "user %d-%d" % (key, random.randrange(1000)), "score": 1.0, "tags": [key], "visits": 0}
    done += 240
    counter.seek(0)
    counter.write(struct.pack("<Q", done))
    time.sleep(0.005)
