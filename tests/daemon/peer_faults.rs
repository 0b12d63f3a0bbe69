//! Faults that Copy has in other devices, by the numbers under which we keep them: each has a test that fails on a
//! device that has the fault, here or where this table says.
//!
//! | QEMU | the fault | its test |
//! |---|---|---|
//! | 1 | keeps reading from the last foreign namespace | `copying::list_returns_to_its_own_namespace`; `qemu_fault_1` in `copy::plan` |
//! | 2 | overlap missed, and seen where there is none | `copying::overlap`; `qemu_fault_2` in `copy::plan` and in the executor's policies |
//! | 3 | errors found after damage | `copying::qemu_fault_3`; `qemu_fault_3` in `copy::plan` |
//! | 4 | block sizes that differ are let through | here |
//! | 5, 9 | tuples of protection information | no protection information yet: formats 1 and 3 and all its fields are refused or ignored, `copying::refused_forms_of_the_command` |
//! | 6, 7 | claims one atomic write, and that all is fast | here |
//! | 8 | a refused Copy opens a zone | no zones yet |
//! | 10 | forgets placement ids | no placement yet: a directive is refused, `copying::refused_forms_of_the_command` |
//! | 11 | not in SMART | `copy_methods::smart_counts_copies` |
//! | 12 | MCL in the wrong byte order | here |
//! | 13 | looks at the destination's state, not at the source's | here, by what state there is |
//! | 14 | memory as the guest likes | here; `qemu_fault_14` in the executor's policies |
//! | 15 | an Abort that worked says that it did not | here |
//!
//! | SPDK | the fault | its test |
//! |---|---|---|
//! | 1 | Internal Error for all | `copying::refusals`; `spdk_fault_1` in the executor's policies |
//! | 2, 8 | parts of an overlapping Copy in parallel; no true DW0 | `spdk_fault_2` and `spdk_fault_8` in the executor's policies |
//! | 3 | limits not kept | `copying::spdk_fault_3`; `spdk_fault_3` in `copy::plan` |
//! | 4 | tuples of protection information | as QEMU's 5 and 9 |
//! | 5 | FUA ignored | `spdk_fault_5` in the executor's policies; `tests/faults` cuts the power |
//! | 6 | 32-byte entries in every format | `copy::range` decodes 40-byte ones; here |
//! | 7 | reservations | none yet |
//! | 9, 10 | its initiator, its fault injection | not a device's |
//! | 11 | one format | `copying::whose_limits` and all others of format 2 |

use crate::host::le::{u16_at, u32_at};
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::*;

/// QEMU compares metadata and protection only, so 128 blocks of 512 bytes land in 16 of 4096, and memory beyond its
/// buffer is read: whatever the command says of protection, blocks of other sizes do not go together.
#[test]
fn qemu_fault_4_block_sizes_that_differ() {
    let d = Daemon::start(
        "--nvme serial=x,cdfe=0xc --nvme-ns drive=memory,size=1M,logical_block_size=512 \
         --nvme-ns drive=memory,size=1M,logical_block_size=4096",
    );
    let mut h = Host::with_queues(&d, 1, 16);
    let mut nss = [1, 2].map(|nsid| Ns::identify(&mut h, nsid));
    for ns in &mut nss {
        h.fill(1, ns, 1);
    }
    // PRINFOW and PRINFOR: insert and strip, together and alone.
    for protection in [0, 1 << 29, 1 << 15, 1 << 29 | 1 << 15] {
        for (from, to, blocks) in [(1, 2, 128), (2, 1, 16), (1, 2, 1), (2, 1, 1)] {
            let sqe = copy(to, 0, 1, 2);
            let cdw12 = 2 << 8 | protection;
            h.send(1, sqe.cdw(12, cdw12), &Range::of(from, 0, blocks).bytes(2))
                .is(st::INCOMPATIBLE_NS, &format!("{blocks} blocks from {from} to {to}, {protection:#x}"));
        }
    }
    for ns in &mut nss {
        ns.verify(&mut h, 1);
    }
}

/// A Copy is several writes, and not every Copy is fast: Identify must claim neither. What Fast Copy Only asks for
/// and memory cannot give is refused.
#[test]
fn qemu_faults_6_and_7_nothing_is_claimed_that_is_not_so() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=1M,copy_method=bounce");
    let mut h = Host::with_queues(&d, 1, 16);
    let oncs = u16_at(&h.identify(1, 0), 520);
    assert_eq!(oncs & (1 << 8), 1 << 8, "Copy");
    assert_eq!(oncs & (1 << 9), 0, "single atomicity");
    assert_eq!(oncs & (1 << 10), 0, "all fast copy");
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 1);
    let fast_only = Range { sopt: 1 << 15, ..Range::of(1, 9, 1) };
    h.set_cdfe(4).ok();
    let c = h.send(1, copy(1, 0, 1, 2), &fast_only.bytes(2));
    assert_eq!((c.code(), c.dw0), (st::NOT_FAST, 0));
    ns.verify(&mut h, 1);
}

/// MCL is four bytes, least significant first, in Identify and where it is kept.
#[test]
fn qemu_fault_12_mcl_byte_by_byte() {
    for mcl in [0x100u32, 0x0001_0203, 0x00fe_0000] {
        let d = Daemon::start(&format!(
            "--nvme-ns drive=memory,size=64M,logical_block_size=512,mssrl=65535,msrc=255,mcl={mcl}"
        ));
        let mut h = Host::with_queues(&d, 1, 16);
        let id = h.identify(0, 1);
        assert_eq!(id[76..80], mcl.to_le_bytes());
        assert_eq!(u32_at(&id, 76), mcl);
        let ranges = |blocks: u32| {
            let whole = (0..blocks / 65535).map(|_| Range::new(0, 65535));
            let rest = (!blocks.is_multiple_of(65535)).then(|| Range::new(0, blocks % 65535));
            whole.chain(rest).collect::<Vec<Range>>()
        };
        let mut of = |blocks: u32, sdlba| {
            let list = ranges(blocks);
            let bytes: Vec<u8> = list.iter().flat_map(|r| r.bytes(0)).collect();
            h.send(1, copy(1, sdlba, list.len(), 0), &bytes)
        };
        if mcl < 0x10000 {
            of(mcl, 65536).ok();
            of(mcl + 1, 65536).is(st::SIZE_LIMIT, "one more");
        } else {
            // Beyond the namespace, wherever it goes: within the limit, that is what is wrong with it.
            of(mcl, 131_000).is(st::LBA_RANGE, "as many as MCL");
            of(mcl + 1, 131_000).is(st::SIZE_LIMIT, "one more");
        }
    }
}

/// The state of namespaces that there is: read-only. It forbids the destination, and a source may well have it.
#[test]
fn qemu_fault_13_the_state_of_either_side() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=256K,logical_block_size=512");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 1);
    let image = d.file("x.img");
    drop(h);
    let mut first = d;
    first.stop();
    let d = Daemon::start(&format!(
        "--nvme serial=x,cdfe=0x4 --nvme-ns drive={},readonly=on,logical_block_size=512 \
         --nvme-ns drive=memory,size=256K,logical_block_size=512",
        image.display()
    ));
    let mut h = Host::with_queues(&d, 1, 16);
    let mut other = Ns::identify(&mut h, 2);
    h.fill(1, &mut other, 2);
    h.send(1, copy(2, 8, 1, 2), &Range::of(1, 3, 5).bytes(2)).ok();
    other.set(8, ns.at(3, 5));
    h.send(1, copy(1, 8, 1, 2), &Range::of(2, 3, 5).bytes(2))
        .is(st::WRITE_PROTECTED, "a read-only destination");
    ns.verify(&mut h, 1);
    other.verify(&mut h, 1);
}

/// The most memory one Copy could make a device take at once, many times over: the daemon stays as small as its
/// bounce memory lets it.
#[test]
fn qemu_fault_14_memory_is_bounded() {
    let d = Daemon::start(
        "--nvme-ns drive={}/x.img,size=1G,logical_block_size=4096,mssrl=65535,mcl=4294967295,\
         copy_method=bounce",
    );
    let mut h = Host::with_queues(&d, 1, 64);
    let before = d.resident();
    let cids: Vec<u16> = (0..20)
        .map(|_| {
            let mark = Data::prp(&mut h.ram, 32);
            mark.put(&h.ram, &Range::new(0, 65535).bytes(0));
            h.queue(1, copy(1, 65536, 1, 0).data(&mark))
        })
        .collect();
    h.ring_sq(1);
    let mut most = 0;
    for cid in cids {
        // What is still to be done is no use to the test. An Abort that overtakes its Copy finds nothing to do.
        let c = loop {
            most = most.max(d.resident());
            h.exec(0, Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1)).ok();
            if let Some(c) = h.try_wait(1, cid, std::time::Duration::from_millis(100)) {
                break c;
            }
        };
        assert!(c.status == st::OK || c.code() == st::ABORT_REQUESTED, "{c:?}");
    }
    // One such Copy is 256 MiB.
    assert!(most < before + (96 << 20), "{before} before, {most} during the Copies");
}

/// An Abort that ended a Copy says so: bit 0 of DW0 is clear, and set when the Copy ended by itself.
#[test]
fn qemu_fault_15_abort_says_what_it_did() {
    let d = Daemon::start(
        "--nvme-ns drive=memory,size=512M,logical_block_size=4096,mssrl=65535,mcl=1000000,msrc=255",
    );
    let mut h = Host::with_queues(&d, 1, 64);
    let half = Ns::facts(&mut h, 1).nsze / 2;
    let list: Vec<u8> = (0..64).flat_map(|i| Range::new(i * 1024, 1024).bytes(0)).collect();
    let (mut aborted, mut rounds) = (0, 0);
    while aborted < 3 && rounds < 100 {
        rounds += 1;
        let mark = h.ram.mark();
        let data = Data::prp(&mut h.ram, list.len());
        data.put(&h.ram, &list);
        let cid = h.submit(1, copy(1, half, 64, 0).data(&data));
        let abort = h.exec(0, Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1));
        let c = h.wait(1, cid);
        let was_aborted = c.code() == st::ABORT_REQUESTED;
        assert!(was_aborted || c.status == st::OK, "{c:?}");
        // "Aborted" promises it; a Copy that was told to stop may still have come to its end.
        assert!(abort.dw0 & 1 == 0 || !was_aborted, "Abort denies what it did");
        aborted += u32::from(was_aborted && abort.dw0 & 1 == 0);
        h.ram.release(mark);
    }
    assert!(aborted > 0, "no Abort of {rounds} came in time");
    h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
}

/// The list of a format with 40-byte entries is not measured with those of 32: what is wrong with the command is its
/// format, however long the list is.
#[test]
fn spdk_fault_6_entries_of_either_length() {
    let d = Daemon::start("--nvme serial=x,ocfs=0xf,cdfe=0xc --nvme-ns drive=memory,size=256K");
    let mut h = Host::with_queues(&d, 1, 16);
    for format in [1, 3] {
        for bytes in [64, 79, 80, 81, 4096] {
            let data = Data::sgl(&mut h.ram, &[Sgl::Block { len: bytes, offset: 0 }], &[]);
            let c = h.exec(1, copy(1, 0, 2, format).data(&data));
            let want =
                if bytes < 80 { [st::SGL_LENGTH, st::INVALID_FORMAT] } else { [st::INVALID_FORMAT; 2] };
            assert!(want.contains(&c.status), "format {format}, {bytes} bytes: {c:?}");
        }
    }
    for (bytes, status) in [(63, st::SGL_LENGTH), (64, st::OK), (80, st::OK), (4096, st::OK)] {
        let mut entries = [Range::new(1, 1).bytes(0), Range::new(2, 1).bytes(0)].concat();
        entries.resize(bytes.max(64), 0);
        entries.truncate(bytes);
        let data = Data::sgl(&mut h.ram, &[Sgl::Block { len: bytes, offset: 0 }], &[]);
        data.put(&h.ram, &entries);
        h.exec(1, copy(1, 8, 2, 0).data(&data)).is(status, &format!("{bytes} bytes of 64"));
    }
}
