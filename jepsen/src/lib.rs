//! Real processes, real faults: workloads, history, checkers, report.
