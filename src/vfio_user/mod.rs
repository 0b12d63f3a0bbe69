//! The vfio-user wire: a pure codec, one session over one socket, interrupts out.
