//! Faults that Copy has in other devices, by the numbers under which we keep them: each has a test that fails on a
//! device that has the fault. Those over the socket are here or in the modules named; where only a simulated image can
//! show the fault, or shows it better, a test beside the code is named too.
//!
//! | QEMU | the fault | its tests |
//! |---|---|---|
//! | 1 | keeps reading from the last foreign namespace | `qemu_fault_1_a_list_returns_to_its_own_namespace` in `copying`; `qemu_fault_1_each_range_reads_its_own_namespace` beside the plan |
//! | 2 | overlap missed, and seen where there is none | `qemu_fault_2_overlap` in `copying`; `qemu_fault_2_overlap_is_exact` beside the plan, `qemu_fault_2_a_snapshot_is_one` beside the executor |
//! | 3 | errors found after damage | `qemu_fault_3_a_copy_that_runs_out_of_bounds_late_writes_nothing` and `refusals` in `copying`; `qemu_fault_3_nothing_is_planned_of_what_fails_late` beside the plan |
//! | 4 | block sizes that differ are let through | `qemu_fault_4_block_sizes_that_differ` |
//! | 5, 9 | protection information: 64-bit guards never match; unallocated sources become escape tags | later: there is none. Formats 1 and 3 are refused and all its fields mean nothing: `qemu_faults_5_and_9_spdk_fault_4_protection_is_refused_or_means_nothing` |
//! | 6 | claims one atomic write | `qemu_fault_6_no_atomicity_is_claimed` |
//! | 7 | claims that all is fast, and does not look at Fast Copy Only | `qemu_fault_7_what_is_not_fast_is_not_said_to_be`, `qemu_fault_7_fast_is_what_shares_blocks_on_xfs`, `qemu_fault_7_fast_is_what_shares_blocks_on_btrfs` |
//! | 8 | a refused Copy has opened a zone | later: no zones. A refused Copy leaves no other trace either: `qemu_faults_8_and_11_a_refused_copy_leaves_no_trace` |
//! | 10 | placement ids ignored | later: no placement. A directive is refused: `qemu_fault_10_placement_is_refused` |
//! | 11 | not in SMART | `qemu_fault_11_smart_counts_each_copy_once`, `qemu_faults_8_and_11_a_refused_copy_leaves_no_trace` |
//! | 12 | MCL in the wrong byte order | `qemu_fault_12_mcl_byte_by_byte` |
//! | 13 | looks at the destination's state, not at the source's | `qemu_fault_13_the_state_of_either_side`; later: no Format, no Sanitize, which the same test sees |
//! | 14 | memory as the guest likes | `qemu_fault_14_memory_is_bounded` here and, under that name, beside the executor |
//! | 15 | an Abort that worked says that it did not | `qemu_fault_15_abort_says_what_it_did`; `an_abort_says_what_became_of_a_copy` of `tests/faults` |
//!
//! | SPDK | the fault | its tests |
//! |---|---|---|
//! | 1 | Internal Error for all | `spdk_fault_1_each_error_has_its_name`, `spdk_fault_1_a_full_file_system`; `spdk_fault_1_a_media_error_keeps_its_name` beside the executor |
//! | 2 | parts of an overlapping Copy in parallel | `spdk_fault_2_an_overlapping_range_is_moved`; `spdk_fault_2_parallel_parts_of_one_overlapping_range` beside the executor |
//! | 3 | limits not kept | `spdk_fault_3_a_block_more_than_the_limits_is_refused` in `copying`; `spdk_fault_3_limits_hold_to_the_block` beside the plan |
//! | 4 | data and tags copied as they are, tags then belong to another block | later: no protection information, as QEMU's 5 and 9: `qemu_faults_5_and_9_spdk_fault_4_protection_is_refused_or_means_nothing` |
//! | 5 | FUA ignored | `every_acknowledgement_holds` of `tests/faults` cuts the power after a Copy with FUA, and `every_acknowledgement_would_fail_without_sync` shows that it would notice; `spdk_fault_5_fua_is_kept_by_every_method` beside the executor |
//! | 6 | 32-byte entries in every format | `spdk_fault_6_entries_of_either_length`; `table_lengths_are_those_of_the_descriptors` beside the decoder |
//! | 7 | reservations not asked | later: none, and none is claimed: `spdk_fault_7_no_reservations` |
//! | 8 | no true DW0 when it ends midway | `spdk_fault_8_dw0_of_a_copy_that_was_stopped`; `copy_fails_midway` of `tests/faults`; `spdk_fault_8_dw0_is_true_in_the_middle` beside the executor |
//! | 9 | its initiator passes no flags on | not a device's |
//! | 10 | its fault injection knows no Copy | not a device's; ours does, `copy_fails_midway` of `tests/faults` |
//! | 11 | one format | `whose_limits` in `copying`, and all others of format 2 |

mod qemu;
mod spdk;

/// The table has a row for each fault, and each test it names is there.
#[test]
fn the_table_is_complete() {
    let table = include_str!("mod.rs");
    let sources = [
        include_str!("qemu.rs"),
        include_str!("spdk.rs"),
        include_str!("../copying.rs"),
        include_str!("../../faults/durability.rs"),
        include_str!("../../faults/medium.rs"),
        include_str!("../../faults/stall.rs"),
        include_str!("../../../src/copy/plan_tests.rs"),
        include_str!("../../../src/copy/execute/policy_tests.rs"),
        include_str!("../../../src/copy/range.rs"),
    ];
    for (peer, count) in [("QEMU", 15), ("SPDK", 11)] {
        let rows = table.lines().skip_while(|line| !line.starts_with(&format!("//! | {peer} |"))).skip(2);
        let rows: Vec<&str> = rows.map_while(|line| line.strip_prefix("//! | ")).collect();
        let number = |text: &str| text.trim().parse::<u32>().expect("a number");
        let mut numbers: Vec<u32> =
            rows.iter().flat_map(|row| row.split('|').next().unwrap().split(',')).map(number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>(), "{peer}");
        for row in rows {
            let tests: Vec<&str> = row
                .split('`')
                .skip(1)
                .step_by(2)
                .filter(|word| !word.contains('/') && *word != "copying")
                .collect();
            assert!(!tests.is_empty() || row.contains("not a device's"), "{row}");
            for test in tests {
                let name = format!("#[test]\nfn {test}()");
                assert!(sources.iter().any(|source| source.replace("    ", "").contains(&name)), "{test}");
            }
        }
    }
}
