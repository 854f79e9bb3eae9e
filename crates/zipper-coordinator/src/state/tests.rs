//! Whole runs, played against the machine.
