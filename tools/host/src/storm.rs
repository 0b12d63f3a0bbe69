//! Many commands of all kinds in flight at once, each with its known outcome.

use std::collections::HashMap;
use std::ops::Range as Span;

use super::nvme::{self, Range, io, st};
use super::{Data, Host, Ns, Rng, Sqe};

pub struct Storm<'a> {
    /// I/O SQs to use.
    pub sqs: &'a [u16],
    pub commands: usize,
    pub depth: usize,
    /// Largest transfer in bytes.
    pub max: usize,
    pub sgl: bool,
    pub copy: bool,
    /// Formats 2 may be used, with any namespace as source.
    pub cross: bool,
}

enum Want {
    /// Status 0 and nothing to look at.
    Nothing,
    Bytes {
        ns: usize,
        slba: u64,
    },
    Mismatch,
}

struct Flight {
    want: Want,
    data: Data,
    /// (namespace, blocks, is written)
    spans: Vec<(usize, Span<u64>, bool)>,
}

fn clash(a: &(usize, Span<u64>, bool), b: &(usize, Span<u64>, bool)) -> bool {
    a.0 == b.0 && (a.2 || b.2) && a.1.start < b.1.end && b.1.start < a.1.end
}

struct Plan {
    sqe: Sqe,
    flight: Flight,
    /// Applied to the shadow when the command goes out.
    writes: Vec<(usize, u64, Vec<u8>)>,
    trims: Vec<(usize, Span<u64>)>,
}

pub fn run(host: &mut Host, nss: &mut [Ns], s: &Storm<'_>, rng: &mut Rng) {
    let mut flights: HashMap<(u16, u16), Flight> = HashMap::new();
    let mark = host.ram.mark();
    let mut cqids: Vec<u16> = s.sqs.iter().map(|q| host.sqs[q].cqid).collect();
    cqids.sort_unstable();
    cqids.dedup();
    let mut sent = 0;
    while sent < s.commands || !flights.is_empty() {
        if flights.is_empty() {
            host.ram.release(mark);
        }
        let low = host.ram.left() < 16 * s.max as u64 + (4 << 20);
        let qid = *rng.pick(s.sqs);
        if sent < s.commands && !low && flights.len() < s.depth && host.room(qid) {
            let salt = sent as u64;
            let free = |spans: &[(usize, Span<u64>, bool)]| {
                !flights.values().flat_map(|f| &f.spans).any(|a| spans.iter().any(|b| clash(a, b)))
            };
            // A few tries for a place nobody is at; then let something finish.
            let plan = (0..8).map(|_| plan(host, nss, s, rng, salt)).find(|p| free(&p.flight.spans));
            if let Some(p) = plan {
                for (n, slba, bytes) in p.writes {
                    nss[n].set(slba, &bytes);
                }
                for (n, span) in p.trims {
                    nss[n].trimmed.extend(span);
                }
                let cid = host.queue(qid, p.sqe);
                flights.insert((qid, cid), p.flight);
                sent += 1;
                // Sometimes several entries with one doorbell.
                if rng.chance(2) {
                    host.ring_sq(qid);
                }
                continue;
            }
        }
        for q in s.sqs {
            host.ring_sq(*q);
        }
        let c = host.wait_any(&cqids);
        let f = flights.remove(&(c.sqid, c.cid)).expect("one of ours");
        match f.want {
            Want::Nothing => {
                c.ok();
            }
            Want::Mismatch => {
                c.is(st::COMPARE_FAILURE, "compare");
            }
            Want::Bytes { ns, slba } => {
                c.ok();
                nss[ns].check(slba, &f.data.get(&host.ram));
            }
        }
    }
    host.ram.release(mark);
}

fn plan(host: &mut Host, nss: &[Ns], s: &Storm<'_>, rng: &mut Rng, salt: u64) -> Plan {
    let n = rng.below(nss.len() as u64) as usize;
    let ns = &nss[n];
    let most = (s.max / ns.lba) as u64;
    // Small ones mostly, large ones sometimes.
    let cap = if rng.chance(4) { most } else { most.min(8) };
    let blocks = rng.within(1, cap.min(ns.nsze)) as u32;
    let slba = rng.below(ns.nsze - u64::from(blocks) + 1);
    let span = slba..slba + u64::from(blocks);
    let len = ns.lba * blocks as usize;
    let mut p = Plan {
        sqe: Sqe::new(io::FLUSH).nsid(ns.nsid),
        flight: Flight { want: Want::Nothing, data: Data::none(), spans: Vec::new() },
        writes: Vec::new(),
        trims: Vec::new(),
    };
    match rng.below(if s.copy { 24 } else { 19 }) {
        0..8 => {
            let d = Data::random(&mut host.ram, len, s.sgl, 4, rng);
            let bytes = ns.pattern(slba, blocks, salt);
            d.put(&host.ram, &bytes);
            p.sqe = Host::rw(io::WRITE, ns, slba, blocks).data(&d);
            if rng.chance(8) {
                p.sqe = p.sqe.fua();
            }
            p.flight.spans = vec![(n, span, true)];
            p.flight.data = d;
            p.writes = vec![(n, slba, bytes)];
        }
        8..14 => {
            let d = Data::random(&mut host.ram, len, s.sgl, 4, rng);
            p.sqe = Host::rw(io::READ, ns, slba, blocks).data(&d);
            p.flight.want = Want::Bytes { ns: n, slba };
            p.flight.spans = vec![(n, span, false)];
            p.flight.data = d;
        }
        14 => {
            if ns.any_trimmed(slba, blocks) {
                return p;
            }
            let d = Data::random(&mut host.ram, len, s.sgl, 4, rng);
            let mut bytes = ns.at(slba, blocks).to_vec();
            if rng.chance(2) {
                let at = rng.below(len as u64) as usize;
                bytes[at] ^= 1 << rng.below(8);
                p.flight.want = Want::Mismatch;
            }
            d.put(&host.ram, &bytes);
            p.sqe = Host::rw(io::COMPARE, ns, slba, blocks).data(&d);
            p.flight.spans = vec![(n, span, false)];
            p.flight.data = d;
        }
        15 => {
            p.sqe = Host::rw(io::WRITE_ZEROES, ns, slba, blocks);
            if rng.chance(2) {
                // DEAC
                p.sqe = p.sqe.cdw(12, (1 << 25) | (blocks - 1));
            }
            p.flight.spans = vec![(n, span, true)];
            p.writes = vec![(n, slba, vec![0; len])];
        }
        16 => {
            let d = Data::random(&mut host.ram, 16, false, 4, rng);
            let mut bytes = [0; 16];
            bytes[4..8].copy_from_slice(&blocks.to_le_bytes());
            bytes[8..16].copy_from_slice(&slba.to_le_bytes());
            d.put(&host.ram, &bytes);
            p.sqe = Sqe::new(io::DSM).nsid(ns.nsid).cdw(11, 4).data(&d);
            p.flight.spans = vec![(n, span.clone(), true)];
            p.flight.data = d;
            p.trims = vec![(n, span)];
        }
        17 => {
            p.sqe = Host::rw(io::VERIFY, ns, slba, blocks);
            p.flight.spans = vec![(n, span, false)];
        }
        18 => {}
        _ => return plan_copy(host, nss, s, rng, n),
    }
    p
}

/// A random legal Copy into namespace `n`.
fn plan_copy(host: &mut Host, nss: &[Ns], s: &Storm<'_>, rng: &mut Rng, n: usize) -> Plan {
    loop {
        if let Some((ranges, sdlba, format)) = random_copy(nss, s.cross, rng, n, 64) {
            return copy_plan(host, nss, n, sdlba, &ranges, format, rng);
        }
    }
}

/// Source ranges, destination and format of a Copy that must succeed; `None` when the dice gave an overlap.
pub fn random_copy(
    nss: &[Ns],
    cross: bool,
    rng: &mut Rng,
    n: usize,
    most_blocks: u64,
) -> Option<(Vec<Range>, u64, u8)> {
    let ns = &nss[n];
    let format = if cross && rng.chance(2) { 2 } else { 0 };
    let count =
        if rng.chance(4) { rng.within(1, ns.ranges as u64) } else { rng.within(1, 5.min(ns.ranges as u64)) };
    let most = (most_blocks / count).max(1).min(u64::from(ns.mssrl));
    let mut ranges = Vec::new();
    let mut total = 0;
    for _ in 0..count {
        let same: Vec<&Ns> = nss.iter().filter(|x| x.lba == ns.lba).collect();
        let source = if format == 2 { rng.pick(&same) } else { ns };
        let blocks = rng.within(1, most.min(source.nsze));
        let slba = rng.below(source.nsze - blocks + 1);
        ranges.push(Range::of(source.nsid, slba, blocks as u32));
        total += blocks;
    }
    if total > ns.nsze || total > u64::from(ns.mcl) {
        return None;
    }
    let sdlba = rng.below(ns.nsze - total + 1);
    let overlap = ranges
        .iter()
        .any(|r| r.snsid == ns.nsid && r.slba < sdlba + total && sdlba < r.slba + u64::from(r.blocks));
    (!overlap).then_some((ranges, sdlba, format))
}

/// What a Copy must leave behind, block by block, from the state before it.
pub fn copied(nss: &[Ns], ranges: &[Range], own: u32) -> Vec<u8> {
    let mut v = Vec::new();
    for r in ranges {
        let from = if r.snsid == 0 { own } else { r.snsid };
        let source = nss.iter().find(|x| x.nsid == from).unwrap();
        for b in 0..u64::from(r.blocks) {
            v.extend_from_slice(source.at(r.slba + b, 1));
        }
    }
    v
}

/// The range list in guest memory, in any legal data layout.
pub fn list(host: &mut Host, ranges: &[Range], format: u8, sgl: bool, rng: &mut Rng) -> Data {
    let bytes: Vec<u8> = ranges.iter().flat_map(|r| r.bytes(format)).collect();
    let d = Data::random(&mut host.ram, bytes.len(), sgl, 4, rng);
    d.put(&host.ram, &bytes);
    d
}

fn copy_plan(
    host: &mut Host,
    nss: &[Ns],
    n: usize,
    sdlba: u64,
    ranges: &[Range],
    format: u8,
    rng: &mut Rng,
) -> Plan {
    let own = nss[n].nsid;
    let bytes = copied(nss, ranges, own);
    let total = (bytes.len() / nss[n].lba) as u64;
    let data = list(host, ranges, format, false, rng);
    let mut spans = vec![(n, sdlba..sdlba + total, true)];
    let mut unsure = false;
    for r in ranges {
        let i = nss.iter().position(|x| x.nsid == r.snsid).unwrap();
        unsure |= nss[i].any_trimmed(r.slba, r.blocks);
        spans.push((i, r.slba..r.slba + u64::from(r.blocks), false));
    }
    let mut sqe = nvme::copy(own, sdlba, ranges.len(), format).data(&data);
    if rng.chance(8) {
        sqe = sqe.fua();
    }
    let mut p = Plan {
        sqe,
        flight: Flight { want: Want::Nothing, data, spans },
        writes: vec![(n, sdlba, bytes)],
        trims: Vec::new(),
    };
    if unsure {
        // Nobody knows what a deallocated source holds: the destination is the same riddle.
        p.trims = vec![(n, sdlba..sdlba + total)];
    }
    p
}
