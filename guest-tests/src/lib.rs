//! Harness that runs the daemon under a real QEMU with a real Linux guest.
