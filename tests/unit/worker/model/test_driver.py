"""The version of NVIDIA's driver, from the kernel module or from nvidia-smi."""

import shutil

import pytest
import torch

from worker.model import driver

PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 2024\nGCC version: 12.2.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"


@pytest.fixture
def no_driver(tmp_path, monkeypatch):
    """A machine without one; returns the file of its kernel module."""
    monkeypatch.setattr(driver, "MODULE", tmp_path / "version")
    monkeypatch.setattr(driver, "FIRST_CARD", tmp_path / "nvidia0")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return tmp_path / "version"


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, "535.183.01"), (OPEN, "580.65.06")])
def test_the_kernel_module_says_its_version(no_driver, text, version):
    """Both kinds of it."""
    no_driver.write_text(text)
    assert driver.driver_version() == version
    assert driver.device_facts() == {"torch_cuda": torch.version.cuda or "", "driver": version, "card_seen": "yes"}


@pytest.mark.parametrize(
    ("script", "version"), [("echo 566.36", "566.36"), ("echo 'No devices were found'; exit 6", "")]
)
def test_else_nvidia_smi_is_asked(no_driver, tmp_path, monkeypatch, script, version):
    """In WSL and on Windows there is no such file."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    assert driver.driver_version() == version


def test_a_machine_without_a_card_says_so(no_driver):
    """And one whose driver says nothing is seen by its first device."""
    assert driver.device_facts()["card_seen"] == ""
    driver.FIRST_CARD.touch()
    assert driver.device_facts()["card_seen"] == "yes"
