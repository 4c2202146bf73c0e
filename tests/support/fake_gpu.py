"""Make a real worker (``--include tests.support.fake_gpu``) take its CPU for the GPU with the UUID in FAKE_GPU."""

import os

from worker.runtime import startup

startup._gpu_uuid = lambda device: os.environ["FAKE_GPU"]
