//! Event files that TensorBoard reads, in `metrics/tensorboard/` of the run.
//!
//! A store of objects cannot append, and TensorBoard does not read a file again that was replaced. So what is new is written
//! as another file from time to time: every ten seconds at first, later less often, so that a long run has hundreds of files
//! and not thousands. TensorBoard reads all files of a folder as one run, in the order of their names: the name has a number,
//! and the last step in it, from which the next coordinator knows where to go on.

mod record;
mod writer;

pub use writer::TensorBoard;
