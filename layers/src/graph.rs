//! Circles in a directed graph: its strongly connected components of more than one node.

use std::collections::{BTreeMap, BTreeSet};

/// The sets of nodes that reach each other, each sorted. Cost: quadratic, for hundreds of nodes.
pub(crate) fn circles<'a>(edges: &[(&'a str, &'a str)]) -> Vec<Vec<&'a str>> {
    let nodes: BTreeSet<&str> = edges.iter().map(|(from, _)| *from).collect();
    let reached: BTreeMap<&str, BTreeSet<&str>> = nodes.iter().map(|node| (*node, reached_from(node, edges))).collect();
    let reaches = |from: &str, to: &str| reached.get(from).is_some_and(|reached| reached.contains(to));
    let mut circles = BTreeSet::new();
    for node in &nodes {
        let circle: Vec<&str> =
            nodes.iter().filter(|other| reaches(node, other) && reaches(other, node)).copied().collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

fn reached_from<'a>(node: &'a str, edges: &[(&'a str, &'a str)]) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        let next = edges.iter().filter(|(from, _)| *from == node).map(|(_, to)| *to);
        open.extend(next.filter(|to| reached.insert(*to)));
    }
    reached
}
