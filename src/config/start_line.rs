//! What the daemon prints when it listens: the socket, and the QEMU arguments to paste.

use std::path::Path;

use super::SUN_PATH_MAX;

/// One line, without its newline. The socket's path is made absolute, since QEMU may be started elsewhere,
/// unless that makes it too long for a socket address.
///
/// QEMU takes a vfio-user socket only in the JSON form of `-device`, and the device needs guest memory that
/// QEMU shares by descriptor.
pub fn start_line(socket: &Path) -> String {
    let path = std::path::absolute(socket)
        .ok()
        .filter(|p| p.as_os_str().len() <= SUN_PATH_MAX)
        .unwrap_or_else(|| socket.to_owned());
    let path = path.to_string_lossy();
    let device = serde_json::json!({
        "driver": "vfio-user-pci",
        "socket": { "path": path, "type": "unix" },
    });
    format!(
        "listening on {}; QEMU arguments: -object memory-backend-memfd,id=m0,size=1G,share=on \
         -machine q35,memory-backend=m0 -device {}",
        shell_word(&path),
        shell_word(&device.to_string())
    )
}

/// `text` as one word of a POSIX shell.
fn shell_word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@%".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_line() {
        assert_eq!(
            start_line(Path::new("/run/nvme.sock")),
            "listening on /run/nvme.sock; QEMU arguments: -object memory-backend-memfd,id=m0,size=1G,share=on \
             -machine q35,memory-backend=m0 \
             -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"path\":\"/run/nvme.sock\",\"type\":\"unix\"}}'"
        );
        assert!(
            start_line(Path::new("/run/it's \"$(here)\""))
                .ends_with(r#""path":"/run/it'\''s \"$(here)\"","type":"unix"}}'"#)
        );
    }

    #[test]
    fn a_relative_path_is_made_absolute_if_it_fits() {
        let here = std::env::current_dir().unwrap();
        let line = start_line(Path::new("s.sock"));
        assert!(line.contains(here.join("s.sock").to_str().unwrap()));
        let long = "x".repeat(SUN_PATH_MAX);
        assert!(start_line(Path::new(&long)).contains(&format!("\"path\":\"{long}\"")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shell_gives_back_the_word(text in "[ -~\u{e4}]{0,40}") {
            let out = std::process::Command::new("/bin/sh")
                .args(["-c", &format!("printf %s {}", shell_word(&text))])
                .output()
                .unwrap();
            prop_assert_eq!(String::from_utf8(out.stdout).unwrap(), text);
        }
    }
}
