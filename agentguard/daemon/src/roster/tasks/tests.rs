use super::*;

fn tasks(dir: &tempfile::TempDir) -> Tasks {
    Tasks::new(Book::open(&dir.path().join("tasks.json")).unwrap())
}

#[tokio::test]
async fn who_lists_tasks_does_not_wait_for_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = tasks(&dir);
    let open = |tasks: &Tasks| tasks.list().len();
    let new = NewTask {
        agent: "a".into(),
        opened_by: OpenedBy::Agent,
        by: None,
        terms: Terms {
            intent: "order paper".into(),
            ..Terms::default()
        },
        seconds: None,
    };
    let here = std::thread::current().id();
    let add = move |book: &mut Book| {
        assert_ne!(std::thread::current().id(), here);
        Ok(book.add(new, Timestamp::now())?.0)
    };
    let (book, line) = tasks.change(add).await.unwrap();
    assert_eq!(open(&tasks), 1, "while it is held for the change");
    drop(book);
    let end = move |book: &mut Book| Ok(book.end(|it| it.id == line.id)?);
    tasks.change(end).await.unwrap();
    assert_eq!(open(&tasks), 0);
    std::fs::remove_dir_all(dir.path()).unwrap();
    let end = |_: &mut Book| Err::<(), _>(TaskError::Failed("no disk".into()));
    assert!(tasks.change(end).await.is_err());
}

#[test]
fn agents_changes_are_bounded() {
    let tasks = tasks(&tempfile::tempdir().unwrap());
    let mut places: Vec<_> = (0..MAX_CHANGES).map(|_| tasks.place().unwrap()).collect();
    assert!(tasks.place().is_none());
    places.pop();
    assert!(tasks.place().is_some());
}
