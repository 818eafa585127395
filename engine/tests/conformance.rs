//! One suite over every backend of the runtime seam: what a shard relies on, whoever runs it.
#![allow(clippy::unwrap_used, missing_docs, reason = "test helpers outside of test functions")]

#[path = "conformance/bed.rs"]
mod bed;
#[path = "conformance/buffers.rs"]
mod buffers;
#[path = "conformance/files.rs"]
mod files;
#[path = "conformance/restarts.rs"]
mod restarts;
#[path = "conformance/sockets.rs"]
mod sockets;
#[path = "conformance/tasks.rs"]
mod tasks;

/// Makes a test of each case for one backend.
macro_rules! backend {
    ($backend:ident, $run:path, $runtime:ty: $($module:ident::$case:ident,)*) => {
        mod $backend {
            $(#[test] fn $case() { $run(crate::$module::$case::<$runtime>) })*
        }
    };
}

/// The cases that hold for every backend, and those that need a kernel.
macro_rules! suite {
    (everywhere [$($module:ident::$case:ident,)*] kernel [$($kmodule:ident::$kcase:ident,)*]) => {
        backend!(glommio, crate::bed::real, engine::runtime::glommio::GlommioRuntime:
            $($module::$case,)* $($kmodule::$kcase,)*);
        backend!(monoio, crate::bed::real, engine::runtime::monoio::MonoioRuntime<engine::runtime::monoio::Uring>:
            $($module::$case,)* $($kmodule::$kcase,)*);
        backend!(monoio_epoll, crate::bed::real, engine::runtime::monoio::MonoioRuntime<engine::runtime::monoio::Epoll>:
            $($module::$case,)* $($kmodule::$kcase,)*);
        backend!(sim, crate::bed::simulated, engine::runtime::sim::SimRuntime: $($module::$case,)*);
    };
}

suite! {
    everywhere [
    buffers::buffers_are_aligned_and_as_long_as_asked,
    buffers::frozen_bytes_do_not_change,
    buffers::an_empty_pool_waits_and_resumes,
    buffers::a_slice_keeps_its_buffer_out_of_the_pool,
    buffers::what_is_read_is_counted_and_waits_for_nobody,
    files::what_is_written_is_read,
    files::a_read_is_short_only_at_the_end,
    files::a_slice_of_a_frozen_buffer_is_written,
    files::what_was_read_can_be_written,
    files::a_dropped_write_happens_all_the_same,
    files::many_writes_at_once_all_land,
    files::preallocated_space_reads_as_zeros_and_keeps_data,
    files::syncs_succeed,
    files::a_missing_file_is_told_from_an_error,
    files::space_is_sane,
    files::a_clone_reads_the_same_and_neither_side_changes_the_other,
    files::a_hole_reads_as_zeros_and_the_file_keeps_its_length,
    sockets::head_and_payload_arrive_as_one_stream,
    sockets::both_directions_flow_at_once,
    sockets::recv_some_appends_at_most_what_it_may,
    sockets::an_early_end_is_an_unexpected_end,
    sockets::a_dropped_receive_loses_the_connection,
    sockets::a_refused_connection_is_an_error,
    tasks::a_task_outlives_who_spawned_it,
    tasks::a_yielding_task_starves_nobody,
    tasks::sleeps_end_in_order,
    tasks::time_does_not_go_back,
    ] kernel [
    files::errors_keep_their_number,
    files::preallocation_takes_no_space_before_its_offset,
    sockets::nodelay_is_set_on_both_ends,
    sockets::waiting_costs_no_cpu,
    tasks::wakes_from_other_threads_arrive,
    restarts::a_shard_waits_for_its_tasks_and_their_io,
    ]
}
