//! The control thread's side of guest memory: map and unmap.
/// Owner of the DMA table; see the module docs.
#[derive(Debug)]
pub struct DmaSpace {}
