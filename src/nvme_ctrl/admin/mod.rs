//! Admin commands and the admin queue pair, on the control thread.
//!
//! Each command is a function over [`Ctl`], the parts of the controller that it sees. None of them knows the
//! controller.

mod abort;
mod async_event;
mod changed;
mod counts;
mod ctl;
mod doorbell_buffer;
mod events;
mod features;
mod get_features;
mod health;
mod identify;
mod keep_alive;
mod log_pages;
mod queue_pair;
mod queues;
mod scripted;
mod set_features;
mod state;

use std::time::Instant;

use super::error_log::Failed;
use super::pending::{Pending, Then};
use crate::laboratory::{Fate, Post, Script};
use crate::spec::commands::AdminCommand;
use crate::spec::{Outcome, Sqe, Status};
pub use ctl::Ctl;
use ctl::Reply;
pub use events::Event;
pub use health::{critical_warning, report_new_warnings};
pub use keep_alive::KeepAlive;
use scripted::Held;
pub use state::Admin;

/// Takes admin commands while there are any and their completions have room.
pub fn run(ctl: &mut Ctl<'_>) {
    if ctl.admin.queue.look(&ctl.shared.doorbells).is_err() {
        invalid_doorbell(ctl, Event::INVALID_DOORBELL_VALUE);
    }
    if !ctl.workers.bus_master() {
        return;
    }
    async_event::deliver(ctl);
    while let Some(sqe) = ctl.admin.queue.fetch(ctl.memory) {
        match fate(ctl, &sqe) {
            Fate::Pass => execute(ctl, &sqe),
            Fate::End(status) => complete(ctl, Failed::of(0, &sqe), Outcome::of(status)),
            Fate::Script(script) => begin(ctl, sqe, *script),
        }
        async_event::deliver(ctl);
    }
}

/// What laboratories want of a command.
fn fate(ctl: &Ctl<'_>, sqe: &Sqe) -> Fate {
    let Some(labs) = ctl.laboratory.control() else { return Fate::Pass };
    let depth = ctl.admin.scripted.len() + 1;
    labs.iter().map(|lab| lab.fetched(sqe, depth)).fold(Fate::Pass, Fate::or)
}

fn execute(ctl: &mut Ctl<'_>, sqe: &Sqe) {
    match command(ctl, sqe).unwrap_or_else(Reply::from) {
        Reply::Done(outcome) => {
            if !outcome.status.is_success() {
                log::debug!("admin {:#04x}: {:?}: {sqe:x?}", sqe.opc, outcome.status);
            }
            complete(ctl, Failed::of(0, sqe), outcome);
        }
        Reply::Later => {}
        Reply::Outstanding => {
            // It ends with an event, or never.
            ctl.admin.scripted.take_running(sqe.cid.get());
            ctl.admin.queue.release();
        }
    }
}

/// A command that meets `script` was taken.
fn begin(ctl: &mut Ctl<'_>, sqe: Sqe, mut script: Script) {
    if script.spurious {
        ctl.shared.interrupts.raise_at_once(0);
    }
    if let Some(why) = script.fatal.take() {
        return ctl.admin.queue.lose(why);
    }
    if script.begin.is_over(Instant::now()) {
        go_on(ctl, &sqe, script);
    } else {
        ctl.admin.scripted.hold(sqe, script);
    }
}

fn go_on(ctl: &mut Ctl<'_>, sqe: &Sqe, script: Script) {
    let idle = script.idle;
    ctl.admin.scripted.runs(sqe.cid.get(), script);
    if idle {
        complete(ctl, Failed::of(0, sqe), Outcome::of(Status::SUCCESS));
    } else {
        execute(ctl, sqe);
    }
}

/// Goes on with what laboratories held until now.
pub fn look_at_held(ctl: &mut Ctl<'_>) {
    let now = Instant::now();
    while let Some(Held { sqe, script }) = ctl.admin.scripted.next_to_begin(now) {
        go_on(ctl, &sqe, script);
    }
    while let Some((cid, outcome, script)) = ctl.admin.scripted.next_to_end(now) {
        post(ctl, cid, outcome, script.post);
    }
    run(ctl);
}

/// The device is on the bus again: posts what ended and takes what was asked meanwhile.
pub fn resume(ctl: &mut Ctl<'_>) {
    for (cid, outcome) in ctl.admin.queue.take_unposted() {
        ctl.post(cid, outcome);
    }
    run(ctl);
}

/// An admin doorbell was written.
pub fn doorbell(ctl: &mut Ctl<'_>, is_head: bool, value: u16) {
    match ctl.admin.queue.ring(&ctl.shared.doorbells, is_head, value) {
        Ok(()) => run(ctl),
        Err(_) => invalid_doorbell(ctl, Event::INVALID_DOORBELL_VALUE),
    }
}

/// A doorbell of a queue that does not exist was written, or one with a value its queue cannot have: `event`
/// says which. The write has no other effect.
pub fn invalid_doorbell(ctl: &mut Ctl<'_>, event: Event) {
    log::warn!(
        "guest rang {}",
        if event == Event::INVALID_DOORBELL {
            "the doorbell of a queue that does not exist"
        } else {
            "a doorbell with a value its queue cannot have"
        }
    );
    ctl.shared.errors.doorbell();
    report(ctl, event);
}

/// Reports `event`, if the host has asked for it.
pub fn report(ctl: &mut Ctl<'_>, event: Event) {
    ctl.admin.events.push(event, ctl.admin.features.async_event);
    async_event::deliver(ctl);
}

/// A worker has done its part of an admin command.
pub fn acknowledged(ctl: &mut Ctl<'_>, pending: Pending, answer: bool) {
    let outcome = match pending.then {
        Then::DeleteSq(qid) => {
            ctl.queues.set_sq(qid, None);
            Outcome::of(Status::SUCCESS)
        }
        Then::DeleteCq(qid) => {
            ctl.queues.set_cq(qid, None);
            Outcome::of(Status::SUCCESS)
        }
        Then::Abort => {
            ctl.admin.aborts = ctl.admin.aborts.saturating_sub(1);
            Outcome { status: Status::SUCCESS, dw0: u32::from(!answer) }
        }
        Then::CacheFlushed if answer => Outcome::of(Status::SUCCESS),
        Then::CacheFlushed => {
            // A command that fails changes nothing.
            ctl.admin.features.write_cache = true;
            ctl.apply_features();
            Outcome::of(Status::WRITE_FAULT)
        }
    };
    complete(ctl, pending.command, outcome);
    run(ctl);
}

/// Posts the completion of a command whose entry is reserved.
fn complete(ctl: &mut Ctl<'_>, command: Failed, mut outcome: Outcome) {
    let script = ctl.admin.scripted.take_running(command.cid);
    if let Some(script) = &script {
        outcome = script.ending.of(outcome, &script.lands, None);
    }
    if !outcome.status.is_success() {
        outcome.status = ctl.shared.errors.failed(command, outcome.status);
    }
    let Some(script) = script else { return post(ctl, command.cid, outcome, Post::Once) };
    if let Some(more) = script.ending.more {
        outcome.status = outcome.status.with_more(more);
    }
    if script.end.is_over(Instant::now()) {
        post(ctl, command.cid, outcome, script.post);
    } else {
        ctl.admin.scripted.hold_end(command.cid, outcome, script);
    }
}

fn post(ctl: &mut Ctl<'_>, cid: u16, outcome: Outcome, how: Post) {
    if let Some(labs) = ctl.laboratory.control() {
        labs.iter().for_each(|lab| lab.ended());
    }
    match how {
        Post::Once => ctl.post(cid, outcome),
        Post::Never => ctl.admin.queue.release(),
        Post::Twice => {
            ctl.post_unreserved(cid, outcome);
            ctl.post(cid, outcome);
        }
        Post::As(other) => ctl.post(other, outcome),
        Post::Unannounced => ctl.post_unannounced(cid, outcome),
    }
}

fn command(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    if sqe.fuse() != 0 {
        return Err(Status::INVALID_FIELD.dnr());
    }
    ctl.admin.keep_alive.touch();
    ctl.admin.counts.command(sqe.opc);
    let command = AdminCommand::of(sqe.opc).filter(|command| ctl.offers(*command));
    match command.ok_or(Status::INVALID_OPCODE.dnr())? {
        AdminCommand::DeleteSq => queues::delete_sq(ctl, sqe),
        AdminCommand::CreateSq => queues::create_sq(ctl, sqe),
        AdminCommand::GetLogPage => log_pages::get_log_page(ctl, sqe),
        AdminCommand::DeleteCq => queues::delete_cq(ctl, sqe),
        AdminCommand::CreateCq => queues::create_cq(ctl, sqe),
        AdminCommand::Identify => identify::identify(ctl, sqe),
        AdminCommand::Abort => abort::abort(ctl, sqe),
        AdminCommand::SetFeatures => set_features::set_features(ctl, sqe),
        AdminCommand::GetFeatures => get_features::get_features(ctl, sqe),
        AdminCommand::AsyncEvent => async_event::async_event_request(ctl, sqe),
        AdminCommand::KeepAlive => Ok(Status::SUCCESS.into()),
        AdminCommand::DoorbellBuffer => doorbell_buffer::doorbell_buffer_config(ctl, sqe),
    }
}
