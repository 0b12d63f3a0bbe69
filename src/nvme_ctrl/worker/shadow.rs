//! The buffers of Doorbell Buffer Config as one worker has them.

use crate::nvme_ctrl::doorbell_buffers::{BufferConfig, Buffers};

/// See the module docs.
#[derive(Debug, Default)]
pub struct Shadow {
    pub(super) config: Option<BufferConfig>,
    /// Found in guest memory. `None` while that is not there.
    pub(super) buffers: Option<Buffers>,
}

impl Shadow {
    /// Forgets them: the controller is reset.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Where the host says that they are; they have to be found there.
    pub fn configure(&mut self, config: Option<BufferConfig>) {
        self.config = config;
    }
}
