//! What whoever runs the device sets of a controller while it is used.

/// Values to be set; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Identify Controller MDTS, at least 1: from the next time that the host enables the controller, for it has read the
    /// old one and need not look again before.
    pub mdts: Option<u8>,
    /// Copy descriptor formats offered (OCFS), of those that there are.
    pub ocfs: Option<u16>,
    /// Copy descriptor formats enabled whatever the host has set (bits of CDFE).
    pub cdfe: Option<u16>,
    /// Copy is among the commands (ONCS).
    pub copy: Option<bool>,
    /// Composite temperature in kelvin.
    pub temperature: Option<u16>,
    /// Available spare in percent.
    pub spare: Option<u8>,
    /// Bits of Critical Warning that are set whether or not anything gives reason to.
    pub warnings: Option<u8>,
}

/// The device's state of health as it is said to be: there is no medium that could get warm or wear out. A reset changes
/// none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Composite temperature in kelvin.
    pub temperature: u16,
    /// Available spare in percent.
    pub spare: u8,
    /// As in [`Settings`].
    pub warnings: u8,
}

impl Default for Health {
    /// A drive at 37 degrees, as good as new.
    fn default() -> Self {
        Self { temperature: 310, spare: 100, warnings: 0 }
    }
}
