"""Makes a real worker (``--include tests.support.fake_gpu``) believe that its CPU is the GPU named in FAKE_GPU."""

import os

from worker.runtime import startup

startup._card = lambda settings: os.environ["FAKE_GPU"]
