//! Bugs of the derived state, planted.

use crate::crash::FoldLife;
use crate::crashes::planted::{Target, must_be_found};

#[test]
fn every_planted_bug_is_found() {
    must_be_found(Target::Fold, &[], FoldLife::live);
}
