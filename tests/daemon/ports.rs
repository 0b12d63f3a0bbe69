//! Several sockets, each a controller of its own, that share the namespaces.

use crate::host::nvme::{io, st};
use crate::host::*;

/// Feature 05h, Error Recovery, with DULBE.
const ERROR_RECOVERY: (u8, u32) = (0x05, 1 << 16);

fn host(path: &std::path::Path) -> Host {
    let mut host = Host::cold(path);
    host.enable();
    host.io_queues(1, 64);
    host
}

#[test]
fn a_second_socket_shares_namespace_1() {
    let mut d = Daemon::start("--socket {}/t --nvme-ns drive=memory,size=1M");
    let (mut a, mut b) = (host(&d.socket()), host(&d.file("t")));
    let controllers = [&mut a, &mut b].map(|host| host.identify(1, 0));
    assert_eq!(
        controllers.each_ref().map(|id| (le::u16_at(id, 78), id[76])),
        [(0, 2), (1, 2)],
        "CNTLID, CMIC"
    );
    assert_eq!(controllers[0][768..1024], controllers[1][768..1024], "one subsystem");
    assert_eq!(a.identify(0, 1)[30], 1, "NMIC");
    // What one writes the other reads.
    let mut ns = Ns::identify(&mut a, 1);
    a.write(1, &mut ns, 8, 16, 1);
    assert_eq!(b.read(1, &ns, 8, 16), ns.at(8, 16));
    b.write(1, &mut ns, 100, 1, 2);
    ns.verify(&mut a, 1);
    // What one host sets of a namespace is its own, and goes with it alone.
    let deallocated = |host: &mut Host| {
        let to = host.ram.pages(1);
        host.exec(1, Host::rw(io::READ, &ns, 1000, 8).prp(to, 0)).code()
    };
    let mut sqe = Sqe::new(nvme::admin::SET_FEATURES).nsid(1).cdw(10, ERROR_RECOVERY.0.into());
    sqe = sqe.cdw(11, ERROR_RECOVERY.1);
    a.admin(sqe).ok();
    assert_eq!([deallocated(&mut a), deallocated(&mut b)], [0x287, st::OK]);
    b.client.reset();
    assert_eq!(deallocated(&mut a), 0x287);
    // A client that goes leaves the other one alone.
    drop(b);
    let mut b = host(&d.file("t"));
    assert_eq!([deallocated(&mut a), deallocated(&mut b)], [0x287, st::OK]);
    ns.verify(&mut b, 1);
    d.stop();
}
