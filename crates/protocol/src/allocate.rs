//! Who consumes which queue: RocketMQ's strategies AVG and AVG_BY_CIRCLE. Every member computes the same table from the same
//! lists, and so does a broker that is asked for it.

/// The queues of member `index` out of `members`: contiguous blocks over the sorted queues, where the first members get
/// one queue more if they do not divide evenly. Members beyond the number of queues get none.
pub fn average<T>(queues: &[T], members: usize, index: usize) -> &[T] {
    assert!(index < members, "member {index} of {members}");
    let (share, remainder) = (queues.len() / members, queues.len() % members);
    let start = index * share + index.min(remainder);
    let end = start + share + usize::from(index < remainder);
    &queues[start..end]
}

/// The queues of `member`. Sorts both lists as every member does. `None` if the member is not in the list: then the
/// list was made by somebody who does not know this member, and says nothing about its queues.
pub fn share_of<T: Ord + Clone>(queues: &[T], members: &[String], member: &str) -> Option<Vec<T>> {
    let (queues, members, index) = placed(queues, members, member)?;
    Some(average(&queues, members, index).to_vec())
}

/// The same by AVG_BY_CIRCLE: the queues are dealt out one by one.
pub fn circle_of<T: Ord + Clone>(queues: &[T], members: &[String], member: &str) -> Option<Vec<T>> {
    let (queues, members, index) = placed(queues, members, member)?;
    Some(queues.into_iter().skip(index).step_by(members).collect())
}

/// The sorted queues, how many members there are, and which of them `member` is.
fn placed<T: Ord + Clone>(queues: &[T], members: &[String], member: &str) -> Option<(Vec<T>, usize, usize)> {
    let (mut queues, mut members) = (queues.to_vec(), members.to_vec());
    queues.sort();
    members.sort_by(|a, b| java_order(a, b));
    members.dedup();
    let index = members.iter().position(|other| other == member)?;
    Some((queues, members.len(), index))
}

/// Java compares texts by UTF-16 unit, which differs from Rust's order above U+FFFF only.
fn java_order(a: &str, b: &str) -> std::cmp::Ordering {
    a.encode_utf16().cmp(b.encode_utf16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_avg() {
        // Queues, members, and how many queues each member gets.
        let table: &[(usize, &[usize])] = &[
            (4, &[4]),
            (4, &[2, 2]),
            (4, &[2, 1, 1]),
            (8, &[3, 3, 2]),
            (10, &[3, 3, 2, 2]),
            (3, &[1, 1, 1, 0, 0]),
            (0, &[0, 0]),
            (1, &[1, 0]),
        ];
        for (queues, shares) in table {
            let all: Vec<usize> = (0..*queues).collect();
            let blocks: Vec<&[usize]> = (0..shares.len()).map(|index| average(&all, shares.len(), index)).collect();
            assert_eq!(blocks.iter().map(|block| block.len()).collect::<Vec<_>>(), *shares, "{queues} queues");
            assert_eq!(blocks.concat(), all, "every queue has one owner, in order");
        }
    }

    #[test]
    fn members_agree_whatever_order_they_heard_the_lists_in() {
        let ids = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(share_of(&[3, 1, 0, 2, 4], &ids("b a"), "a"), Some(vec![0, 1, 2]));
        assert_eq!(share_of(&[0, 1, 2, 3, 4], &ids("a b a"), "b"), Some(vec![3, 4]));
        assert_eq!(share_of(&[0, 1], &ids("a b"), "c"), None);
        assert_eq!(circle_of(&[4, 3, 2, 1, 0], &ids("b a"), "a"), Some(vec![0, 2, 4]));
        assert_eq!(circle_of(&[0, 1], &ids("a b c"), "c"), Some(vec![]));
        // U+10000 is written with surrogates, which Java sorts before U+FFFD.
        assert_eq!(share_of(&[0, 1], &ids("\u{FFFD} \u{10000}"), "\u{10000}"), Some(vec![0]));
    }
}
