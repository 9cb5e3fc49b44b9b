use super::*;

#[test]
fn dependencies_are_a_list() {
    let read = |text: &str| read_depends_on(&BTreeMap::from([(DEPENDS_ON.to_owned(), text.to_owned())]));
    assert_eq!(read_depends_on(&BTreeMap::new()), Ok(vec![]));
    assert_eq!(read(""), Ok(vec![]));
    let ids = read("b,a").unwrap();
    assert_eq!(write_depends_on(&ids), "b,a");
    for bad in [",", "a,", "a,a", "a, b", "a/b"] {
        assert!(read(bad).is_err(), "{bad}");
    }
}
