//! Arguments to configuration, configuration to a running device, device to an exit code.

fn main() {}
