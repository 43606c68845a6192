//! The commands over a store, as people and scripts run them: on stores made for each test, by the real program.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/shop.rs"]
mod shop;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use happen::store::{Batch, NewRecord, Read, Replaced, Select, Store as _, Tag, Write};
use happen_core::codec::{PointKind, StepOutcome, WireChange, WirePoint, WireRecord, WireStep};
use happen_core::hash::hash_event;
use serde_json::{Value as Json, json};
use shop::{
    AGAIN, CHARGE, LARGE, ORDER, PARCEL, Shop, UNPAID, document, failure as failed, packed, record, root,
};

/// The program in the folder around a store, whose name is the default one.
fn happen(shop: &Shop, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_happen"));
    command.args(arguments).current_dir(shop.around()).stdin(Stdio::null());
    command.env_clear().env("LC_ALL", "C.UTF-8").envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

fn run(shop: &Shop, arguments: &[&str]) -> Output {
    happen(shop, arguments)
        .output()
        .unwrap_or_else(|error| panic!("the program could not be started: {error}"))
}

/// What the program prints when all is well.
#[track_caller]
fn text(shop: &Shop, arguments: &[&str]) -> String {
    let output = run(shop, arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json(shop: &Shop, arguments: &[&str]) -> Json {
    let text = text(shop, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// JSON on lines.
#[track_caller]
fn lines(shop: &Shop, arguments: &[&str]) -> Vec<Json> {
    let text = text(shop, &[arguments, &["--json"]].concat());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The one sentence of a command that failed with this exit code.
#[track_caller]
fn failure(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    let sentence = told.strip_prefix("happen: ").and_then(|told| told.strip_suffix('\n'));
    let sentence = sentence.unwrap_or_else(|| panic!("{told:?}"));
    assert!(!sentence.contains(['\n', '\r']) && !sentence.contains("SqliteStore"), "{sentence}");
    sentence.to_owned()
}

fn fed(mut command: Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// All commands that read, with what they need.
const READING: [&[&str]; 18] = [
    &["tail"],
    &["tail", "--json"],
    &["ps"],
    &["balance"],
    &["trace", ORDER],
    &["why", PARCEL],
    &["why", "orders"],
    &["impact", ORDER],
    &["flows", "show", LARGE],
    &["dead", "ls"],
    &["dead", "show", UNPAID],
    &["verify"],
    &["store", "info"],
    &["store", "verify"],
    &["state", "ls"],
    &["state", "get", "orders"],
    &["state", "history", "orders"],
    &["state", "diff", "orders", "1", "2"],
];

#[test]
fn info_tells_sizes_and_counts() {
    let shop = Shop::open();
    let told = text(&shop, &["store", "info"]);
    let told: Vec<_> = told.lines().collect();
    let expected = [
        "folder       ./data",
        "format       2",
        "records      8",
        "documents    6",
        "revisions    1 of the past",
        "head         8",
        "last commit  2026-01-05T10:00:05.000Z",
    ];
    assert_eq!(told[..7], expected);
    let told = json(&shop, &["store", "info", "--store", shop.path().to_str().unwrap()]);
    assert_eq!(told["folder"], shop.path().to_str().unwrap());
    assert_eq!((&told["records"], &told["documents"], &told["head"]), (&8.into(), &6.into(), &8.into()));
    assert_eq!(told["last_commit"], "2026-01-05T10:00:05.000Z");
    assert_eq!(json(&Shop::empty(), &["store", "info"])["last_commit"], Json::Null);
}

#[test]
fn the_store_is_named_on_the_line_or_in_the_environment_or_is_the_folder_data() {
    let shop = Shop::open();
    let elsewhere = Shop::empty();
    let records = |command: &mut Command| {
        let output = command.args(["store", "info", "--json"]).output().unwrap();
        serde_json::from_slice::<Json>(&output.stdout).unwrap()["records"].as_u64().unwrap()
    };
    assert_eq!(records(&mut happen(&shop, &[])), 8);
    assert_eq!(records(happen(&shop, &[]).env("HAPPEN_STORE", "")), 8);
    assert_eq!(records(happen(&shop, &[]).env("HAPPEN_STORE", elsewhere.path())), 0);
    let mut both = happen(&shop, &[]);
    both.env("HAPPEN_STORE", elsewhere.path());
    let output = both.args(["store", "info", "--json", "--store"]).arg(shop.path()).output().unwrap();
    assert_eq!(serde_json::from_slice::<Json>(&output.stdout).unwrap()["records"], 8);
}

#[test]
fn a_missing_folder_is_told_and_never_made() {
    let shop = Shop::closed();
    for arguments in READING {
        let told = failure(&run(&shop, arguments), 1);
        assert_eq!(
            told,
            "there is no folder ./data; name the folder of a store with --store or HAPPEN_STORE"
        );
    }
    let told = failure(&run(&shop, &["state", "set", "a/b", "1", "--revision", "0", "--shape", "1"]), 1);
    assert!(told.starts_with("there is no folder ./data; "), "{told}");
    let told = failure(&run(&shop, &["store", "prune", "--before", "1d"]), 1);
    assert!(told.starts_with("there is no folder ./data; "), "{told}");
    let told = failure(&run(&shop, &["store", "restore", "no-backup"]), 1);
    assert!(told.starts_with("there is no folder no-backup; "), "{told}");
    assert_eq!(fs::read_dir(shop.around()).unwrap().count(), 0, "something was made");

    fs::create_dir(shop.path()).unwrap();
    for arguments in READING {
        let told = failure(&run(&shop, arguments), 1);
        assert_eq!(told, "there is no store in ./data; name the folder of one with --store or HAPPEN_STORE");
    }
    let told = failure(&run(&shop, &["state", "set", "a/b", "1", "--revision", "0", "--shape", "1"]), 1);
    assert!(told.starts_with("there is no store in ./data; "), "{told}");
    assert_eq!(fs::read_dir(shop.path()).unwrap().count(), 0, "something was made");

    fs::write(shop.path().join("happen.db"), "no database, and long enough to be one: ".repeat(40)).unwrap();
    let told = failure(&run(&shop, &["store", "info"]), 1);
    assert!(told.contains("./data") && told.contains("give another folder"), "{told}");
    fs::write(shop.around().join("file"), "").unwrap();
    let told = failure(&run(&shop, &["store", "info", "--store", "file"]), 1);
    assert_eq!(told, "file is not a folder; name the folder of a store with --store");
    for arguments in [&["send", "orders", "place"][..], &["balance"], &["demo"]] {
        let arguments = [arguments, &["--store", "file"]].concat();
        let told = failure(&run(&shop, &arguments), 1);
        assert_eq!(told, "file is not a folder; name the folder of a store with --store", "{arguments:?}");
    }
}

#[test]
fn a_copy_is_a_store_and_a_store_is_made_of_it_again() {
    let shop = Shop::open();
    assert_eq!(
        text(&shop, &["store", "backup", "copy"]),
        "copied ./data to copy; all of the copy was read and is as it was written\n"
    );
    let told = failure(&run(&shop, &["store", "backup", "copy"]), 1);
    assert_eq!(told, "there is a store in copy already; give another folder");
    let told = failure(&run(&shop, &["store", "restore", "copy"]), 1);
    assert_eq!(told, "there is a store in ./data already; give another folder");

    let told = json(&shop, &["store", "restore", "copy", "--store", "again"]);
    assert_eq!(told, json!({ "from": "copy", "to": "again" }));
    let of = |store| text(&shop, &["state", "history", "orders", "--json", "--store", store]);
    assert_eq!(of("again"), of("./data"));
    assert!(
        json(&shop, &["store", "info", "--store", "again"])["head"].as_u64() > Some(8),
        "positions come again"
    );
}

#[test]
fn a_document_is_named_by_its_node_its_state_or_its_key() {
    let shop = Shop::open();
    let expected = json!({ "placed": 1, "charged": [7], "last": { "item": "tea", "total": 7 } });
    for key in ["orders", "orders/orders", "state/orders/orders"] {
        let output = run(&shop, &["state", "get", key]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(serde_json::from_slice::<Json>(&output.stdout).unwrap(), expected, "{key}");
    }
    for key in ["orders/order/1", "entity/orders/order/1"] {
        assert_eq!(text(&shop, &["state", "get", key]), "{\n  \"total\": 7\n}\n");
    }
    let told = json(&shop, &["state", "get", "orders", "--revision", "1"]);
    let expected = json!({
        "key": "state/orders/orders", "revision": 1, "at": "2026-01-05T10:00:00.000Z", "position": 1,
        "deleted": false, "name": "orders", "version": 1, "exact": true,
        "content": { "placed": 1, "last": { "item": "tea" } },
    });
    assert_eq!(told, expected);

    for key in ["nobody", "orders/other", "state/orders/other", "orders/order/2", "", "/", "flow/orders"] {
        let told = failure(&run(&shop, &["state", "get", key]), 4);
        assert!(told.contains(key), "{told}");
    }
    let told = failure(&run(&shop, &["state", "get", "orders", "--revision", "3"]), 4);
    assert!(told.starts_with("revision 3 of document `state/orders/orders` was never written"), "{told}");

    let other = |name: &str| document(&format!("state/orders/{name}"), 1, name, Some(packed(&json!(1))));
    shop.commit(&[Batch { documents: vec![other("other")], ..Batch::default() }]);
    let told = failure(&run(&shop, &["state", "get", "orders"]), 2);
    assert_eq!(told, "`orders` has several states: name one of `state/orders/orders`, `state/orders/other`");
}

#[test]
fn names_with_slashes_are_written_as_they_are_or_as_in_keys() {
    let shop = Shop::empty();
    let documents = vec![document("state/tenant%2Fa/50%25", 1, "50%", Some(packed(&json!("é\u{1b}"))))];
    shop.commit(&[Batch { documents, ..Batch::default() }]);
    for key in ["tenant/a", "tenant%2Fa", "tenant%2Fa/50%25", "state/tenant%2Fa/50%25"] {
        assert_eq!(text(&shop, &["state", "get", key]), "\"é\\u001b\"\n", "{key}");
    }
    // JSON is for programs, whatever a person's locale can show.
    let output = happen(&shop, &["state", "get", "tenant/a"]).env("LC_ALL", "C").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "\"é\\u001b\"\n");
    assert_eq!(
        text(&shop, &["state", "ls", "tenant/a"]).split_whitespace().next(),
        Some("state/tenant%2Fa/50%25")
    );
}

#[test]
fn documents_are_listed_by_node() {
    let shop = Shop::open();
    let expected = "\
state/orders/orders     2  2026-01-05T10:00:01.000Z
state/payments/account  1  2026-01-05T10:00:02.000Z
entity/orders/order/1  1  2026-01-05T10:00:01.000Z
";
    assert_eq!(text(&shop, &["state", "ls"]), expected);
    let keys: Vec<_> =
        lines(&shop, &["state", "ls", "orders"]).iter().map(|line| line["key"].clone()).collect();
    assert_eq!(keys, ["state/orders/orders", "entity/orders/order/1"]);
    let told = failure(&run(&shop, &["state", "ls", "order"]), 4);
    assert_eq!(told, "no document of a node `order` is there; `happen state ls` lists those of all");
    assert_eq!(text(&Shop::empty(), &["state", "ls"]), "");
}

#[test]
fn what_is_not_kept_is_told_in_words_and_in_json() {
    let shop = Shop::empty();
    let revision = |revision: u64, replaced| {
        let bytes = packed(&json!({ "watts": revision }));
        let write = Write { replaced, ..document("state/meter/meter", revision, "meter", Some(bytes)) };
        Batch { documents: vec![write], ..Batch::default() }
    };
    // 2 and 6 are kept, and 7 as long as it is current.
    let kept = |number| if number % 4 == 2 { Replaced::Kept } else { Replaced::Forgotten };
    shop.commit(&(1..=7).map(|number| revision(number, kept(number))).collect::<Vec<_>>());
    let told = text(&shop, &["state", "history", "meter"]);
    let expected = "\
7    2026-01-05T10:00:06Z  -  (not remembered)
6    2026-01-05T10:00:05Z  -  (not remembered)
3-5                        -  (not kept)
2    2026-01-05T10:00:01Z  -  (not remembered)
1                          -  (not kept)
";
    assert_eq!(told, expected);
    let told = lines(&shop, &["state", "history", "meter"]);
    let told: Vec<_> = told.iter().map(|line| (line["revision"].clone(), line["missing"].clone())).collect();
    assert_eq!(told, [(json!(7), json!(0)), (json!(6), json!(3)), (json!(2), json!(1))]);
    let told = text(&shop, &["why", "meter/meter"]);
    assert!(told.lines().any(|line| line.ends_with("3-5  (not kept)")), "{told}");

    let get = |more: &[&str]| run(&shop, &[&["state", "get", "meter"], more].concat());
    let told = json(&shop, &["state", "get", "meter", "--at", "2026-01-05T10:00:05Z"]);
    assert_eq!((&told["content"], &told["missing"]), (&json!({ "watts": 6 }), &json!(0)));
    // Nothing tells when 3 to 5 were, so at the time of 2 it is not claimed that it was 2.
    for at in ["2026-01-05T10:00:01Z", "2026-01-05T10:00:04Z"] {
        let told = failure(&get(&["--at", at]), 4);
        assert!(told.contains("is not kept") && told.contains("is revision 2"), "{told}");
        failure(&get(&["--at", at, "--json"]), 4);
        let output = get(&["--at", at, "--nearest"]);
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "{\n  \"watts\": 2\n}\n");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("this is revision 2") && told.contains("up to 3 after it"), "{told}");
        let told = json(&shop, &["state", "get", "meter", "--at", at, "--nearest"]);
        assert_eq!((&told["revision"], &told["missing"]), (&json!(2), &json!(3)));
    }
    let told = failure(&get(&["--at", "2026-01-05T10:00:00Z", "--nearest"]), 4);
    assert!(told.starts_with("nothing is kept of document"), "{told}");
    let told = failure(&get(&["--revision", "4"]), 4);
    assert!(told.contains("the newest before it that is, is 2"), "{told}");
    assert_eq!(get(&["--revision", "4", "--at", "1d"]).status.code(), Some(2));
    assert_eq!(get(&["--nearest"]).status.code(), Some(2));

    assert_eq!(text(&shop, &["state", "diff", "meter", "2", "6"]), "~ /watts  2 -> 6\n");
    let told = failure(&run(&shop, &["state", "diff", "meter", "5", "6"]), 4);
    assert!(told.starts_with("revision 5 of document `state/meter/meter` is not kept; "), "{told}");
    let told = failure(&run(&shop, &["state", "diff", "meter", "1", "6"]), 4);
    assert!(told.contains("is not kept, nor any before it"), "{told}");
}

#[test]
fn differences_are_told_place_by_place() {
    let shop = Shop::open();
    assert_eq!(text(&shop, &["state", "diff", "orders", "1", "2"]), "+ /charged  [7]\n+ /last/total  7\n");
    assert_eq!(text(&shop, &["state", "diff", "orders", "2", "1"]), "- /charged  [7]\n- /last/total  7\n");
    assert_eq!(text(&shop, &["state", "diff", "orders", "2", "2"]), "");
    let told = lines(&shop, &["state", "diff", "orders", "1", "2"]);
    assert_eq!(
        told,
        [json!({ "path": "/charged", "after": [7] }), json!({ "path": "/last/total", "after": 7 })]
    );
    failure(&run(&shop, &["state", "diff", "orders", "1", "9"]), 4);
}

#[test]
fn a_change_by_hand_is_compared_with_the_revision_and_recorded() {
    let shop = Shop::open();
    let set = |content: &str, revision: &str| {
        run(&shop, &["state", "set", "orders", content, "--revision", revision])
    };
    let told = failure(&set("{}", "1"), 1);
    assert_eq!(
        told,
        "document `state/orders/orders` has revision 2 and not 1; read it again and decide again: `happen state get`"
    );
    let output = set(r#"{ "placed": 5, "rate": 0.5, "name": "é" }"#, "2");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "state/orders/orders  revision 3\n");
    let told = json(&shop, &["state", "get", "orders"]);
    assert_eq!(
        (&told["revision"], &told["name"], &told["version"]),
        (&3.into(), &"orders".into(), &1.into())
    );
    assert_eq!(told["content"], json!({ "placed": 5, "rate": 0.5, "name": "é" }));
    assert_eq!(lines(&shop, &["state", "history", "orders"]).len(), 3, "the past was not kept");

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let page = runtime.block_on(async {
        let store = shop.store().await;
        store.read(Read::backward(Select::tag(Tag::Node("orders".into()))).at_most(1)).await.unwrap()
    });
    let record = WireRecord::decode(&page.records[0].bytes, 1 << 20).unwrap();
    assert_eq!(json!(told["position"]), json!(page.records[0].position.number() as u64));
    assert!(record.event.is_empty() && record.step.is_none());
    assert_eq!((&*record.changes[0].key, record.changes[0].revision), ("state/orders/orders", 3));
    assert!(text(&shop, &["store", "verify"]).starts_with("9 records"));
}

#[test]
fn a_new_document_needs_its_key_and_the_version_of_its_shape() {
    let shop = Shop::empty();
    let set = |key: &str, more: &[&str]| {
        run(&shop, &[&["state", "set", key, "[1]", "--revision", "0"], more].concat())
    };
    let told = failure(&set("new/thing", &[]), 2);
    assert_eq!(
        told,
        "`state/new/thing` says nothing yet, so the version of its shape is unknown; give it with --shape"
    );
    for key in ["new", "global/a", "flow/a/b/c", ""] {
        let told = failure(&set(key, &["--shape", "1"]), 2);
        assert!(told.contains(key), "{told}");
    }
    assert!(set("new/thing", &["--shape", "4"]).status.success());
    assert!(set("new/thing/key%2F1", &["--shape", "5"]).status.success());
    let told = json(&shop, &["state", "get", "new"]);
    assert_eq!((&told["name"], &told["version"], &told["revision"]), (&"thing".into(), &4.into(), &1.into()));
    let told = json(&shop, &["state", "get", "entity/new/thing/key%2F1"]);
    assert_eq!((&told["name"], &told["version"]), (&"thing".into(), &5.into()));
    failure(&set("new/thing", &["--shape", "4"]), 1);
}

#[test]
fn a_content_is_json_from_the_line_or_from_standard_input() {
    let shop = Shop::open();
    let told = failure(&run(&shop, &["state", "set", "orders", "tea", "--revision", "2"]), 2);
    assert!(told.starts_with("the content is not JSON ("), "{told}");
    let set = || happen(&shop, &["state", "set", "orders", "-", "--revision", "2", "--json"]);
    let told = failure(&fed(set(), "{"), 2);
    assert!(told.starts_with("the content is not JSON ("), "{told}");
    let told = failure(&fed(set(), &format!("\"{}\"", "a".repeat(1 << 20))), 1);
    assert_eq!(told, "that is 1048581 bytes, and a document has at most 1048576; write less");
    let told = failure(&fed(set(), &" ".repeat((4 << 20) + 1)), 2);
    assert_eq!(told, "the content has more than 4194304 bytes; write less");
    let output = fed(set(), "{\"from\": \"elsewhere\"}\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(json(&shop, &["state", "get", "orders"])["content"], json!({ "from": "elsewhere" }));
}

#[test]
fn what_json_cannot_say_is_shown_and_not_written() {
    let shop = Shop::empty();
    // A map with the key 7, and two bytes.
    let bytes = vec![0x82, 7, 0xa1, b'x', 0xa1, b'b', 0xc4, 2, 0xab, 1];
    let documents =
        vec![document("state/a/b", 1, "b", Some(bytes)), document("state/c/d", 1, "d", Some(vec![0xc1]))];
    shop.commit(&[Batch { documents, ..Batch::default() }]);
    let told = json(&shop, &["state", "get", "a"]);
    assert_eq!((&told["content"], &told["exact"]), (&json!({ "7": "x", "b": "0xab01" }), &false.into()));
    let told = failure(&run(&shop, &["state", "set", "a", "{}", "--revision", "1"]), 2);
    assert_eq!(told, "`state/a/b` has bytes, numbers or keys that JSON cannot say; change it from a program");
    failure(&run(&shop, &["state", "get", "c"]), 1);
}

#[test]
fn a_deleted_document_has_a_history() {
    let shop = Shop::open();
    shop.commit(&[Batch {
        documents: vec![document("state/orders/orders", 3, "orders", None)],
        ..Batch::default()
    }]);
    let told = failure(&run(&shop, &["state", "get", "orders/orders"]), 4);
    assert!(
        told.starts_with("document `state/orders/orders` was deleted by revision 3 at 2026-01-05T10:00:0"),
        "{told}"
    );
    let revisions = lines(&shop, &["state", "history", "orders/orders"]);
    assert_eq!((&revisions[0]["deleted"], &revisions[1]["deleted"]), (&true.into(), &false.into()));
    let told = lines(&shop, &["state", "diff", "orders/orders", "1", "3"]);
    assert_eq!(told[0]["after"], Json::Null);
    let output = run(&shop, &["state", "set", "orders/orders", "1", "--revision", "3", "--shape", "1"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn pruning_keeps_what_flows_and_dead_letters_need() {
    let shop = Shop::open();
    let prune = &["store", "prune", "--before", "2030-01-01T00:00:00Z"][..];
    let would = json(&shop, &[prune, &["--dry-run"]].concat());
    let expected = json!({
        "before": "2030-01-01T00:00:00.000Z", "dry_run": true, "records": 5, "revisions": 1, "events_kept": 3,
    });
    assert_eq!(would, expected);
    assert_eq!(json(&shop, &["store", "info"])["records"], 8, "a dry run forgot something");
    let only = json(&shop, &[prune, &["--dry-run", "--type", "charge", "--keep-history"]].concat());
    assert_eq!((&only["records"], &only["revisions"]), (&2.into(), &0.into()));

    let told = text(&shop, prune);
    assert_eq!(
        told,
        "forgot 5 records and 1 past revision from before 2030-01-01T00:00:00Z\nkept the records of 3 older events, \
         which flows under way or dead letters need\n"
    );
    assert_eq!(json(&shop, &["store", "info"])["records"], 3);
    assert_eq!(json(&shop, &["state", "get", "orders"])["revision"], 2);
    assert!(text(&shop, &["verify"]).starts_with("3 records"));
    assert_eq!(text(&shop, &["flows", "ls", "--json"]).lines().count(), 2);
    text(&shop, &["trace", LARGE]);
    failure(&run(&shop, &["trace", ORDER]), 4);

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let anchor = runtime.block_on(async {
        let store = shop.store().await;
        store.documents(vec!["anchor/log".into()]).await.unwrap().remove(0).unwrap()
    });
    let told: Json = happen_core::payload::decode(&anchor.content.unwrap().bytes).unwrap();
    assert_eq!((&told["event"], &told["before"]), (&AGAIN.into(), &9.into()));
    assert_eq!(told["hash"].as_str().unwrap().len(), 64, "{told}");

    let earlier = json(&Shop::open(), &["store", "prune", "--before", "2026-01-05T10:00:02Z"]);
    assert_eq!((&earlier["records"], &earlier["events_kept"]), (&3.into(), &0.into()));
    let usage = run(&shop, &["store", "prune", "--before", "yesterday"]);
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
}

#[test]
fn the_newest_records_are_told_and_those_of_a_type_a_node_or_a_time() {
    let shop = Shop::open();
    let expected = "\
019b8d99-6900-7000-8000-000000000001  10:00:00Z  next     place-order > orders/…
019b8d99-6900-7000-8000-000000000001  10:00:01Z  ended    place-order > orders/…
019b8d99-6ce8-7000-8000-000000000002  10:00:01Z  event    charge < orders
019b8d99-6ce8-7000-8000-000000000002  10:00:02Z  ended    charge > payments/take
019b8d99-70d0-7000-8000-000000000003  10:00:02Z  event    order.shipped < payme…
019b8d99-74b8-7000-8000-000000000004  10:00:03Z  next     place-order > orders/…
019b8d99-78a0-7000-8000-000000000005  10:00:04Z  failed   charge > payments/tak…
019b8d99-7c88-7000-8000-000000000006  10:00:05Z  retry    charge > payments/tak…
";
    assert_eq!(text(&shop, &["tail"]), expected);
    let from = |line: usize| expected.lines().skip(line).map(|line| format!("{line}\n")).collect::<String>();
    assert_eq!(text(&shop, &["tail", "-n", "3"]), from(5));
    assert_eq!(text(&shop, &["tail", "-n", "8"]), from(0));
    assert_eq!(text(&shop, &["tail", "-n", "0"]), "");
    assert_eq!(text(&shop, &["tail", "--since", "2026-01-05T11:00:02+01:00"]), from(3));
    assert_eq!(text(&shop, &["tail", "--since", "1s"]), "");
    assert_eq!(text(&Shop::empty(), &["tail"]), "");

    let positions = |arguments: &[&str]| {
        let told = lines(&shop, &[&["tail"], arguments].concat());
        told.iter().map(|line| line["position"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(positions(&["--type", "charge"]), [3, 4, 7, 8]);
    assert_eq!(positions(&["--type", "{place-order,order.*}", "-n", "3"]), [2, 5, 6]);
    assert_eq!(positions(&["--node", "payments"]), [4, 5, 7, 8]);
    assert_eq!(positions(&["--node", "payments", "--type", "charge", "-n", "1"]), [8]);
    assert_eq!(positions(&["--node", "nobody"]), [0; 0]);
    assert_eq!(run(&shop, &["tail", "--type", "a**"]).status.code(), Some(2));
}

#[test]
fn a_record_is_told_whole_as_json() {
    let shop = Shop::open();
    let told = &lines(&shop, &["tail", "-n", "7"])[0];
    let expected = json!({
        "position": 2, "at": "2026-01-05T10:00:01.000Z", "event": ORDER, "type": "place-order",
        "correlation": "order-1", "node": "orders", "sender": null, "causes": [], "readable": true,
        "events": [], "accepted": [], "changes": [],
        "step": {
            "event": ORDER, "node": "orders", "registration": "validate", "step": "pay", "number": 1, "attempt": 1,
            "sent": [CHARGE], "points": [], "values": {}, "outcome": "ended", "position": 2,
            "at": "2026-01-05T10:00:01.000Z",
            "changes": [
                { "key": "state/orders/orders", "revision": 2 }, { "key": "entity/orders/order/1", "revision": 1 },
            ],
        },
    });
    assert_eq!(told, &expected);
    let told = &lines(&shop, &["tail", "-n", "4"])[0];
    assert_eq!(told["causes"], json!([CHARGE]));
    let payload = json!({ "item": "tea", "total": 7 });
    assert_eq!((&told["events"][0]["payload"], &told["events"][0]["sender"]), (&payload, &"payments".into()));
}

#[test]
fn a_record_of_another_form_is_told_and_left_out() {
    let shop = Shop::open();
    let record = |tags, bytes: &[u8]| NewRecord { tags, bytes: bytes.into() };
    let records = vec![record(vec![Tag::Declared("mine".into())], b"rubbish")];
    shop.commit(&[Batch { records, ..Batch::default() }]);
    let output = run(&shop, &["tail", "-n", "2"]);
    let told = failure(&output, 5);
    assert!(told.starts_with("1 record of a form that this program does not read; "), "{told}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        told.lines().nth(1),
        Some("-                                     10:00:05Z  unknown"),
        "{told}"
    );
}

/// A process that follows a log, and ends with the test also when that fails.
struct Following(Option<Child>);

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn who_follows_the_log_sees_what_another_process_commits() {
    let shop = Shop::open();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = runtime.block_on(shop.store());
    let mut command = happen(&shop, &["tail", "--follow", "-n", "1", "--node", "orders"]);
    let mut child = Following(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()));
    let mut told = BufReader::new(child.0.as_mut().and_then(|child| child.stdout.take()).unwrap()).lines();
    assert!(told.next().unwrap().unwrap().starts_with(LARGE));
    for number in 0..3 {
        let mut bytes = Vec::new();
        let changes = vec![WireChange { key: "state/orders/orders".into(), revision: 7 + number }];
        WireRecord { changes, ..WireRecord::default() }.encode_into(&mut bytes, 1_000).unwrap();
        for node in ["payments", "orders"] {
            let record = NewRecord { tags: vec![Tag::Node(node.into())], bytes: bytes.clone().into() };
            let batch = Batch { records: vec![record], ..Batch::default() };
            runtime.block_on(store.commit(vec![batch])).remove(0).unwrap();
        }
        let line = told.next().unwrap().unwrap();
        assert!(line.starts_with("- "), "{line}");
        assert!(line.ends_with("changed  state/orders/orders r…"), "{line}");
    }
    // Nobody reads on: the next record ends it, quietly.
    drop(told);
    let record = NewRecord { tags: vec![Tag::Node("orders".into())], bytes: [1, 0x80, 0xc4, 0].into() };
    runtime
        .block_on(store.commit(vec![Batch { records: vec![record], ..Batch::default() }]))
        .remove(0)
        .unwrap();
    let output = child.0.take().unwrap().wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn nodes_are_those_of_documents_and_of_records() {
    let shop = Shop::open();
    let expected = "\
orders    1  0  2026-01-05T10:00:03Z  place-order
payments  1  1  2026-01-05T10:00:05Z  charge
";
    assert_eq!(text(&shop, &["ps"]), expected);
    let only = |name: &str| document(&format!("state/{name}/x"), 1, "x", Some(packed(&json!(1))));
    let documents = ["a", "a%2Fb", "a0", "a-b"].map(only).to_vec();
    let record = NewRecord { tags: vec![Tag::Sender("sender".into())], bytes: [1, 0x80, 0xc4, 0].into() };
    shop.commit(&[Batch { documents, records: vec![record], ..Batch::default() }]);
    let nodes: Vec<_> =
        lines(&shop, &["ps"]).iter().map(|line| line["node"].as_str().unwrap().to_owned()).collect();
    assert_eq!(nodes, ["a", "a-b", "a/b", "a0", "orders", "payments", "sender"]);
    let told = &lines(&shop, &["ps", "--node", "payments"])[0];
    let expected = json!({
        "node": "payments", "flows": 1, "dead": 1, "last_at": "2026-01-05T10:00:05.000Z", "last_event": AGAIN,
        "last_type": "charge", "last_position": 8, "kept": 0, "kept_since": null, "kept_first": null,
        "waiting": 0, "waiting_since": null,
    });
    assert_eq!(told, &expected);
    assert_eq!(text(&shop, &["ps", "--node", "a/b"]), "a/b  0  0\n");
    let told = failure(&run(&shop, &["ps", "--node", "nobody"]), 4);
    assert_eq!(told, "no node `nobody` is known to this store; `happen ps` lists those that are");
}

#[test]
fn a_trace_is_a_tree_from_an_id_its_beginning_or_a_correlation() {
    let shop = Shop::open();
    let tree = |asked: [&str; 3]| {
        format!(
            "place-order +0ms  orders/validate > pay ok{}\n└─ charge +1000ms  payments/take ok{}\n   \
             └─ order.shipped +2000ms{}\n",
            asked[0], asked[1], asked[2]
        )
    };
    assert_eq!(text(&shop, &["trace", ORDER]), tree(["  <", "", ""]));
    assert_eq!(text(&shop, &["trace", "019b8d99-70"]), tree(["", "", "  <"]));
    assert_eq!(text(&shop, &["trace", "019B8D996C"]), tree(["", "  <", ""]));
    assert_eq!(text(&shop, &["trace", "order-1"]), tree(["  <", "", ""]));
    let ascii = happen(&shop, &["trace", ORDER]).env("LC_ALL", "C").output().unwrap();
    assert_eq!(String::from_utf8(ascii.stdout).unwrap(), tree(["  <", "", ""]).replace("└─", "+-"));

    let told = json(&shop, &["trace", "order-1"]);
    assert_eq!((&told["asked_for"], &told["cut"]), (&"order-1".into(), &false.into()));
    let events = told["events"].as_array().unwrap();
    let ids: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(ids, [ORDER, CHARGE, PARCEL]);
    let expected = json!([{
        "node": "payments", "registration": "take", "steps": [], "attempts": 1, "outcome": "ended", "code": null,
    }]);
    assert_eq!(events[1]["handled"], expected);
    assert_eq!((&events[1]["causes"], &events[1]["after_ms"]), (&json!([ORDER]), &1_000.into()));

    let told = failure(&run(&shop, &["trace", "019b8d99"]), 2);
    assert!(told.starts_with("several ids begin with `019b8d99`; give more digits of one of: "), "{told}");
    failure(&run(&shop, &["trace", "019b"]), 2);
    for name in ["order-9", "019b8d99-ffff", "019b8d99-6900-7000-8000-000000000009"] {
        assert!(failure(&run(&shop, &["trace", name]), 4).contains(name), "{name}");
    }
}

#[test]
fn why_tells_causes_of_an_event_and_reasons_of_a_document() {
    let shop = Shop::open();
    let expected = format!(
        "{ORDER}  2026-01-05T10:00:00Z  place-order\n{CHARGE}  2026-01-05T10:00:01Z  charge       orders\n"
    );
    assert_eq!(text(&shop, &["why", PARCEL]), expected);
    assert_eq!(text(&shop, &["why", ORDER]), "");
    let told = lines(&shop, &["why", PARCEL]);
    assert_eq!((&told[1]["event"], &told[1]["sender"]), (&CHARGE.into(), &"orders".into()));
    assert_eq!((&told[1]["causes"], &told[1]["payload"]), (&json!([ORDER]), &json!({ "amount": 7 })));

    let expected = format!(
        "{ORDER}  2026-01-05T10:00:01Z  2  orders/pay\n{ORDER}  2026-01-05T10:00:00Z  1  orders/validate\n"
    );
    for key in ["orders", "orders/orders", "state/orders/orders"] {
        assert_eq!(text(&shop, &["why", key]), expected, "{key}");
    }
    assert!(run(&shop, &["state", "set", "orders", "1", "--revision", "2"]).status.success());
    let told = lines(&shop, &["why", "orders"]);
    assert_eq!((&told[0]["by"], &told[0]["event"]), (&"outside".into(), &Json::Null));
    let expected = json!({
        "key": "state/orders/orders", "revision": 2, "at": "2026-01-05T10:00:01.000Z", "position": 3,
        "deleted": false, "missing": 0, "event": ORDER, "by": "step", "type": "place-order", "node": "orders",
        "registration": "validate", "step": "pay",
    });
    assert_eq!(told[1], expected);
    for name in ["orders/none", "nobody", "019b8d99-6900-7000-8000-000000000009"] {
        assert!(failure(&run(&shop, &["why", name]), 4).contains(name), "{name}");
    }
    let told = failure(&run(&shop, &["why", "nobody"]), 4);
    assert!(told.ends_with("; no document is called so: `happen state ls`"), "{told}");
    let told = failure(&run(&shop, &["why", "order-1"]), 2);
    assert!(told.starts_with("`order-1` is a correlation"), "{told}");
}

#[test]
fn a_history_tells_the_event_of_each_revision() {
    let shop = Shop::open();
    let expected = format!(
        "2  2026-01-05T10:00:01Z  {ORDER}  orders/pay\n1  2026-01-05T10:00:00Z  {ORDER}  orders/validate\n"
    );
    assert_eq!(text(&shop, &["state", "history", "orders"]), expected);
    assert_eq!(
        text(&shop, &["state", "history", "entity/orders/order/1"]),
        format!("1  2026-01-05T10:00:01Z  {ORDER}  orders/pay\n")
    );
}

#[test]
fn impact_lists_what_followed() {
    let shop = Shop::open();
    let told: Vec<_> = lines(&shop, &["impact", ORDER]).iter().map(|line| line["event"].clone()).collect();
    assert_eq!(told, [CHARGE, PARCEL]);
    assert_eq!(text(&shop, &["impact", PARCEL]), "");
    failure(&run(&shop, &["impact", "order-1"]), 2);
}

#[test]
fn flows_are_listed_and_shown_whole() {
    let shop = Shop::open();
    let told = text(&shop, &["flows", "ls"]);
    let told: Vec<_> = told.lines().collect();
    assert_eq!(told[0], format!("{LARGE}  orders    approve  waits for approval.*"));
    assert!(told[1].starts_with(&format!("{AGAIN}  payments  take     retry due since ")), "{told:?}");

    let events = |arguments: &[&str]| {
        let told = lines(&shop, &[&["flows", "ls"], arguments].concat());
        told.iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(events(&["--node", "orders"]), [LARGE]);
    assert_eq!(events(&["--registration", "take"]), [AGAIN]);
    assert_eq!(events(&["--step", "approve"]), [LARGE]);
    assert_eq!(events(&["--node", "nobody"]), [""; 0]);

    let expected = format!(
        "\
{LARGE}
  node          orders
  registration  validate
  step          approve (number 1, attempt 1)
  stands        waits for an event approval.* until 2026-01-05T11:00:00Z
  since         2026-01-05T10:00:03.000Z
  points        an event approval.* until 2026-01-05T11:00:00Z
  steps         2026-01-05T10:00:03Z  validate #1 next approve
"
    );
    assert_eq!(text(&shop, &["flows", "show", "019b8d99-74"]), expected);
    let told = json(&shop, &["flows", "show", AGAIN]);
    assert_eq!((&told["stands"], &told["due"]), (&"retrying".into(), &"2026-01-05T10:01:00.000Z".into()));
    assert_eq!(told["error"], json!({ "code": "failed", "text": "the bank is closed" }));
    assert_eq!(told["steps"][0]["outcome"], "retry");
    let told = failure(&run(&shop, &["flows", "show", ORDER]), 4);
    assert_eq!(
        told,
        format!("no flow under way handles event {ORDER}; `happen trace {ORDER}` tells what became of it")
    );
}

#[test]
fn a_flow_that_sleeps_is_not_due_before_its_time() {
    let shop = Shop::open();
    let payload = packed(&json!({}));
    for (number, due_unix_ms) in [(1_u64, 4_102_444_800_000), (2, shop::OPENED_UNIX_MS)] {
        let id = format!("019b8d99-8070-7000-8000-{number:012}");
        let event = root(&id, "remind", "all", &payload);
        let mut step = WireStep::new(event.id, "sleeper", "remind", "remind", StepOutcome::Waits);
        // A sleep is committed with its result: nothing else has to come.
        step.points = vec![WirePoint {
            ordinal: 0,
            kind: PointKind::Sleep,
            name: "".into(),
            event: None,
            due_unix_ms,
            digest: 1,
            result: Some(vec![0xc0].into()),
        }];
        let records = vec![record(&event, &[("sleeper", "remind")], Some(step.clone()), true)];
        shop.commit(&[Batch { records, documents: vec![shop::flow("flow", step, 1)], ..Batch::default() }]);
    }
    let told = lines(&shop, &["flows", "ls", "--node", "sleeper"]);
    let stands: Vec<_> = told.iter().map(|flow| (flow["stands"].clone(), flow["due"].clone())).collect();
    let waiting = |due: &str| (Json::from("waiting"), Json::from(due));
    assert_eq!(stands, [waiting("2100-01-01T00:00:00.000Z"), waiting("2026-01-05T10:00:00.000Z")]);
    let text = text(&shop, &["flows", "ls", "--node", "sleeper"]);
    assert!(text.lines().next().unwrap().contains("  due in ") && text.contains("  due since "), "{text}");
    let flows = json(&shop, &["doctor", "--quick"]);
    let check = flows["checks"].as_array().unwrap().iter().find(|check| check["check"] == "flows").unwrap();
    assert!(check["found"].as_str().unwrap().starts_with("4 under way, 3 due, "), "{check}");
}

#[test]
fn dead_letters_are_listed_and_shown_whole() {
    let shop = Shop::open();
    assert_eq!(text(&shop, &["dead", "ls"]), format!("{UNPAID}  payments  take  the card was declined\n"));
    let expected = format!(
        "\
{UNPAID}
  node          payments
  registration  take
  step          take (number 0, attempt 3)
  stands        failed: the card was declined
  since         2026-01-05T10:00:04.000Z
  steps         2026-01-05T10:00:04Z  take #3 failed the card was declined
"
    );
    assert_eq!(text(&shop, &["dead", "show", UNPAID]), expected);
    let told = &lines(&shop, &["dead", "ls"])[0];
    assert_eq!((&told["attempt"], &told["stands"]), (&3.into(), &"failed".into()));
    assert_eq!(told["error"], json!({ "code": "failed", "text": "the card was declined" }));
    let told = failure(&run(&shop, &["dead", "show", LARGE]), 4);
    assert!(told.starts_with(&format!("no flow that failed for good handled event {LARGE}; ")), "{told}");
}

#[test]
fn long_lists_are_printed_whole_and_in_order() {
    let shop = Shop::empty();
    let ids: Vec<_> = (0..2_100).map(|number| format!("019b8d99-7000-7000-8000-{number:012}")).collect();
    let payload = packed(&json!({}));
    for ids in ids.chunks(300) {
        let mut batch = Batch::default();
        for id in ids {
            let event = root(id, "go", "all", &payload);
            let step = WireStep::new(event.id, "node", "go", "go", StepOutcome::Waits);
            batch.records.push(record(&event, &[("node", "go")], None, true));
            batch.documents.push(shop::flow("flow", step, 1));
            batch.documents.push(document(&format!("entity/node/x/{id}"), 1, "x", Some(payload.clone())));
        }
        shop.commit(&[batch]);
    }
    let first_words = |arguments: &[&str]| {
        let told = text(&shop, arguments);
        told.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(first_words(&["flows", "ls"]), ids);
    assert_eq!(first_words(&["tail", "--since", "1970-01-01"]), ids);
    for count in [1, 999, 1_000, 1_001, 2_000, 2_099, 2_100, 2_101] {
        let last = &ids[ids.len().saturating_sub(count)..];
        assert_eq!(first_words(&["tail", "-n", &count.to_string()]), last, "{count}");
    }
    let keys: Vec<_> = ids.iter().map(|id| format!("entity/node/x/{id}")).collect();
    assert_eq!(first_words(&["state", "ls"]), keys);
    assert_eq!(text(&shop, &["ps"]).split_whitespace().take(3).collect::<Vec<_>>(), ["node", "2", "100"]);
    assert_eq!(lines(&shop, &["ps"])[0]["flows"], 2_100);
    let mut command = happen(&shop, &["flows", "ls", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap());
    told.read_line(&mut String::new()).unwrap();
    drop(told);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_pruning_keeps_at_most_so_many_events() {
    let shop = Shop::empty();
    let payload = packed(&json!({}));
    let flows = |numbers: std::ops::Range<u32>| {
        let ids: Vec<_> = numbers.map(|number| format!("019b8d99-7000-7000-8000-{number:012}")).collect();
        for ids in ids.chunks(400) {
            let mut batch = Batch::default();
            for id in ids {
                let event = root(id, "go", "all", &payload);
                let step = WireStep::new(event.id, "node", "go", "go", StepOutcome::Waits);
                batch.records.push(record(&event, &[("node", "go")], None, true));
                batch.documents.push(shop::flow("flow", step, 1));
            }
            shop.commit(&[batch]);
        }
    };
    let dry = &["store", "prune", "--before", "0s", "--dry-run"];
    for (numbers, kept) in [(0..999, 999), (999..1_000, 1_000)] {
        flows(numbers);
        let told = json(&shop, dry);
        assert_eq!((&told["events_kept"], &told["records"]), (&kept.into(), &0.into()));
    }
    flows(1_000..1_001);
    let told = failure(&run(&shop, dry), 1);
    assert!(
        told.starts_with("more than 1000 flows under way or dead letters are older than that; "),
        "{told}"
    );
}

#[test]
fn nodes_without_documents_are_looked_for_in_so_many_records() {
    let shop = Shop::empty();
    let record = |tag| NewRecord { tags: vec![tag], bytes: [1, 0x80, 0xc4, 0].into() };
    let batch =
        |count: usize| Batch { records: vec![record(Tag::Node("busy".into())); count], ..Batch::default() };
    shop.commit(&[Batch { records: vec![record(Tag::Node("quiet".into()))], ..Batch::default() }]);
    shop.commit(&vec![batch(999); 10]);
    let nodes = || lines(&shop, &["ps"]).iter().map(|line| line["node"].clone()).collect::<Vec<_>>();
    for (more, seen) in [(8, &["busy", "quiet"][..]), (1, &["busy", "quiet"]), (1, &["busy"])] {
        shop.commit(&[batch(more)]);
        assert_eq!(nodes(), seen);
    }
    assert_eq!(lines(&shop, &["ps", "--node", "quiet"])[0]["last_position"], 1);
}

#[test]
fn so_many_nodes_are_shown_and_then_one_has_to_be_named() {
    let shop = Shop::empty();
    let documents = |numbers: std::ops::Range<u32>| {
        let numbers: Vec<_> = numbers.collect();
        for numbers in numbers.chunks(1_000) {
            let node = |number: &u32| document(&format!("state/{number:05}/x"), 1, "x", Some(vec![1]));
            shop.commit(&[Batch { documents: numbers.iter().map(node).collect(), ..Batch::default() }]);
        }
    };
    documents(0..9_999);
    for (more, all) in [(0, 9_999), (1, 10_000)] {
        documents(9_999..9_999 + more);
        assert_eq!(text(&shop, &["ps"]).lines().count(), all);
    }
    documents(10_000..10_001);
    let output = run(&shop, &["ps"]);
    let told = failure(&output, 1);
    assert!(told.starts_with("there are more than 10 000 nodes, and the others are not shown; "), "{told}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 10_000);
}

#[test]
fn flows_are_cancelled_and_tried_in_a_stopped_store() {
    let shop = Shop::open();
    let told = failure(&run(&shop, &["flows", "cancel", LARGE, "--node", "payments"]), 4);
    assert_eq!(told, format!("no flow under way at node `payments` handles event {LARGE}"));
    assert_eq!(
        text(&shop, &["flows", "cancel", "019b8d99-74"]),
        format!("{LARGE}  orders  validate  cancelled\n")
    );
    failure(&run(&shop, &["flows", "cancel", LARGE]), 4);
    failure(&run(&shop, &["flows", "retry", LARGE]), 4);
    let steps = json(&shop, &["trace", LARGE]);
    assert_eq!(steps["events"][0]["handled"][0]["code"], "cancelled", "{steps}");
    assert_eq!(text(&shop, &["dead", "ls"]).lines().count(), 1);

    let ids = fed(happen(&shop, &["flows", "retry", "-", "--json"]), &format!("{AGAIN}  payments\n"));
    let told: Json = serde_json::from_slice(&ids.stdout).unwrap();
    let expected = json!({ "event": AGAIN, "node": "payments", "registration": "take", "became": "due" });
    assert_eq!(told, expected, "{ids:?}");
    let due = text(&shop, &["flows", "ls"]);
    assert!(due.contains("retry due since"), "{due}");
    text(&shop, &["flows", "cancel", AGAIN]);
    assert_eq!(text(&shop, &["flows", "ls"]), "");
    text(&shop, &["verify"]);
    let unknown = "019b8d99-0000-7000-8000-000000000009";
    failure(&run(&shop, &["flows", "cancel", unknown]), 4);
    failure(&run(&shop, &["flows", "cancel", "019b"]), 2);
}

#[test]
fn dead_letters_begin_anew_or_are_dropped_by_hand() {
    let shop = Shop::open();
    for (arguments, told) in [
        (&["dead", "redrive", "--all", "--dry-run"][..], "would begin"),
        (&["dead", "drop", "--node", "payments", "--dry-run"], "would be dropped"),
        (&["dead", "drop", "--type", "charge", "--dry-run"], "would be dropped"),
        (&["dead", "redrive", UNPAID, "--type", "charge"], "begun"),
    ] {
        assert_eq!(text(&shop, arguments), format!("{UNPAID}  payments  take  {told}\n"), "{arguments:?}");
    }
    for arguments in [
        &["dead", "drop", "--all"][..],
        &["dead", "redrive", "--node", "nobody"],
        &["dead", "redrive", "--type", "nothing"],
    ] {
        assert_eq!(text(&shop, arguments), "", "{arguments:?}");
    }
    failure(&run(&shop, &["dead", "redrive", UNPAID]), 4);
    assert_eq!(lines(&shop, &["flows", "ls", "--node", "payments"]).len(), 2);
    text(&shop, &["verify"]);

    let shop = Shop::open();
    let redriven = json(&shop, &["dead", "redrive", UNPAID, "--payload", r#"{"total":4}"#]);
    let instead = redriven["instead"].as_str().unwrap();
    assert_eq!(
        redriven,
        json!({
            "event": UNPAID, "node": "payments", "registration": "take", "dry_run": false, "instead": instead,
            "error": null,
        })
    );
    let why = lines(&shop, &["why", instead]);
    assert_eq!((why.len(), &why[0]["event"]), (1, &Json::from(UNPAID)));
    let last = &lines(&shop, &["tail", "-n", "1"])[0];
    assert_eq!((&last["event"], &last["causes"]), (&instead.into(), &json!([UNPAID])));
    assert_eq!((&last["type"], &last["correlation"]), (&"charge".into(), &"order-3".into()));
    assert_eq!(last["events"][0]["payload"], json!({ "total": 4 }));
    text(&shop, &["verify"]);

    let shop = Shop::open();
    text(&shop, &["dead", "drop", UNPAID]);
    assert_eq!(text(&shop, &["dead", "ls"]), "");
    let last = &lines(&shop, &["tail", "-n", "1"])[0];
    assert_eq!(last["changes"][0]["key"], format!("dead/payments/{UNPAID}/take"));
    text(&shop, &["verify"]);
    for arguments in [
        &["dead", "drop"][..],
        &["dead", "drop", "--dry-run"],
        &["dead", "drop", UNPAID, "--all"],
        &["dead", "redrive", "--all", "--payload", "1"],
        &["dead", "redrive", UNPAID, "--payload", "{"],
        &["flows", "cancel"],
        &["send", "orders"],
        &["send", "orders", "go", "{"],
    ] {
        assert_eq!(run(&shop, arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn an_event_is_kept_in_a_stopped_store() {
    let shop = Shop::empty();
    // Left by a process that was killed.
    #[cfg(unix)]
    drop(std::os::unix::net::UnixListener::bind(shop.path().join("control")).unwrap());
    let told = json(&shop, &["send", "a/b", "go", r#"{"n":1}"#, "--correlation", "c"]);
    assert_eq!((&told["became"], &told["reply"]), (&"kept".into(), &Json::Null));
    let fed = fed(happen(&shop, &["send", "a/b", "go", "-"]), "[2]");
    let line = String::from_utf8(fed.stdout).unwrap();
    assert!(line.ends_with("  kept for the next start\n"), "{line}");
    let sent = failure(&run(&shop, &["send", "a/b", "go", "--reply"]), 1);
    assert!(sent.starts_with("no process has the store, so nobody answers"), "{sent}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let kept = runtime.block_on(async {
        let list = happen::store::List { prefix: "inbox/a%2Fb/".into(), after: None, documents_max: 10 };
        shop.store().await.list(list).await.unwrap()
    });
    let events: Vec<_> = kept.iter().map(|document| document.key.rsplit('/').next().unwrap()).collect();
    assert!(events.contains(&told["event"].as_str().unwrap()), "{events:?} {told}");
    assert_eq!(events.len(), 2);
    failure(&run(&Shop::closed(), &["send", "a", "go"]), 1);
}

/// What `doctor` says of events that are kept.
#[track_caller]
fn kept_events(shop: &Shop) -> Json {
    let told = json(shop, &["doctor", "--quick"]);
    let checks = told["checks"].as_array().unwrap();
    checks.iter().find(|check| check["check"] == "kept events").unwrap().clone()
}

#[test]
fn events_that_are_kept_are_shown_for_each_node() {
    let shop = Shop::empty();
    assert_eq!(kept_events(&shop)["verdict"], "ok");
    let first = json(&shop, &["send", "a/b", "go", "1"])["event"].clone();
    for node in ["a/b", "a/b", "a/bc", "mill"] {
        json(&shop, &["send", node, "go", "1"]);
    }
    let nodes = lines(&shop, &["ps"]);
    let kept: Vec<_> = nodes.iter().map(|told| (told["node"].as_str().unwrap(), &told["kept"])).collect();
    assert_eq!(kept, [("a/b", &3.into()), ("a/bc", &1.into()), ("mill", &1.into())]);
    let told = json(&shop, &["ps", "--node", "a/b"]);
    assert_eq!((&told["kept"], &told["kept_first"]), (&3.into(), &first));
    let since = told["kept_since"].as_str().unwrap();
    assert!(since.starts_with("20") && since.ends_with('Z'), "{since}");
    let line = text(&shop, &["ps", "--node", "a/b"]);
    let beginning = &first.as_str().unwrap()[..8];
    assert!(line.starts_with("a/b  0  0") && line.contains("3 kept "), "{line}");
    assert!(line.contains(&format!(" {beginning}")), "{line}");

    let check = kept_events(&shop);
    assert_eq!(check["verdict"], "warn");
    let found = check["found"].as_str().unwrap();
    assert!(
        found.starts_with(&format!("3 events for `a/b`, the oldest, {}, since ", first.as_str().unwrap())),
        "{found}"
    );
    assert!(found.contains("; 1 event for `a/bc`, ") && found.contains("; 1 event for `mill`, "), "{found}");
    assert_eq!(check["advice"], "start the program: it takes them");
    json(&shop, &["send", "zoo", "go", "1"]);
    let found = kept_events(&shop)["found"].as_str().unwrap().to_owned();
    assert!(found.ends_with("; and for 1 node more; see `happen ps`") && !found.contains("zoo"), "{found}");
}

#[test]
fn a_kept_event_whose_document_names_none_is_counted() {
    let shop = Shop::empty();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = shop.store().await;
        let documents =
            ["inbox/mill/x", "inbox/"].map(|key| document(key, 1, "inbox", Some(packed(&json!(1)))));
        let batch = Batch { documents: documents.into(), ..Batch::default() };
        store.commit(vec![batch]).await.remove(0).unwrap();
        store.close().await;
    });
    let told = json(&shop, &["ps", "--node", "mill"]);
    assert_eq!((&told["kept"], &told["kept_first"]), (&1.into(), &Json::Null));
    let found = kept_events(&shop)["found"].as_str().unwrap().to_owned();
    assert!(found.contains("1 event for `mill`, the oldest since "), "{found}");
}

#[cfg(unix)]
#[test]
fn the_balance_of_a_running_space_and_of_a_stopped_one_is_shown() {
    use happen::{BalanceOptions, Config, Context, Event, Space, millis, secs};
    let shop = Shop::empty();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let quick = BalanceOptions { every_ms: 50, window_ms: 200, calm_ms: 60_000, ..BalanceOptions::default() };
    let config = Config { balance: Some(quick), ..Config::default() };
    let space = runtime.block_on(async {
        let space = Space::open_with(shop.path(), config).await.unwrap();
        let packing = space.node("packing").serial().lag_max(3);
        packing.on("parcel", async |_: Event, cx: Context| cx.sleep(secs(3_600)).await);
        space.node("mails").on("mail", |_: &Event, _: &Context| {});
        space.start().await.unwrap();
        for number in 0..9 {
            space.send(&packing, Event::new("parcel", json!({ "number": number }))).await.unwrap();
        }
        // Found, and nothing has come for as long as rates are taken over.
        loop {
            let report = space.balance_report().await.unwrap();
            let packing = report.nodes.iter().find(|node| node.node == "packing");
            let rates = packing.and_then(|node| node.rates.as_ref());
            if !report.findings.is_empty() && rates.is_some_and(|rates| rates.arrived_per_s < 0.05) {
                break;
            }
            space.env().sleep(millis(10)).await;
        }
        space
    });
    let told = text(&shop, &["balance"]);
    let told: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(told[0][..2], ["node.slow", "bottleneck"]);
    assert_eq!(told[0].last(), Some(&"packing"));
    assert_eq!(told[1][..5], ["mails", "well", "0", "-", "0/100"]);
    // Nothing leaves, so nobody knows how many it would need.
    assert_eq!(
        (told[2][..3].to_vec(), told[2][4..].to_vec()),
        (vec!["packing", "slow", "8"], vec!["1/1", "0.0", "0.0", "-", "0", "0"])
    );
    let report = json(&shop, &["balance", "--node", "packing"]);
    assert_eq!((&report["is_watched"], &report["nodes"][0]["waiting"]), (&true.into(), &8.into()));
    let told = failure(&run(&shop, &["balance", "--node", "nobody"]), 4);
    assert!(told.starts_with("no node `nobody` is among those"), "{told}");
    runtime.block_on(space.stop()).unwrap();

    let report = json(&shop, &["balance"]);
    assert_eq!((&report["is_watched"], &report["findings"]), (&false.into(), &json!([])));
    assert_eq!((&report["nodes"][0]["node"], &report["nodes"][0]["flows"]), (&"packing".into(), &9.into()));
}

#[test]
fn a_doctor_names_the_nodes_that_a_running_program_does_not_have() {
    use happen::{Context, Event, Space};
    let shop = Shop::empty();
    for (node, event_type) in [("mill", "grain"), ("mill", "sand"), ("mil", "grain")] {
        json(&shop, &["send", node, event_type, "1"]);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let start = |more: Option<&'static str>| {
        runtime.block_on(async {
            let space = Space::open(shop.path()).await.unwrap();
            space.node("mill").on("grain", |_: &Event, _: &Context| {});
            if let Some(more) = more {
                space.node(more).on("grain", |_: &Event, _: &Context| {});
            }
            space.start().await.unwrap();
            space
        })
    };
    let space = start(None);
    let check = kept_events(&shop);
    let found = check["found"].as_str().unwrap();
    assert!(found.starts_with("1 event for `mil`, ") && found.contains("; 1 event for `mill`, "), "{found}");
    let advice = "the program has no node `mil`: add it or correct its name, and start the program again";
    assert_eq!((&check["verdict"], &check["advice"]), (&"warn".into(), &advice.into()));
    let kept: Vec<_> = lines(&shop, &["ps"]).iter().map(|told| told["kept"].clone()).collect();
    assert_eq!(kept, [1, 1]);
    runtime.block_on(space.stop()).unwrap();

    // The name is there now, and what a node does not handle stays.
    let space = start(Some("mil"));
    let advice = "the program has the nodes, and did not take them when it started; see its problems";
    assert_eq!(kept_events(&shop)["advice"], advice);
    runtime.block_on(space.stop()).unwrap();
    let kept: Vec<_> = lines(&shop, &["ps"]).iter().map(|told| told["kept"].clone()).collect();
    assert_eq!(kept, [0, 1]);
}

#[test]
fn nothing_is_said_of_nodes_where_nobody_can_be_asked() {
    let shop = Shop::empty();
    json(&shop, &["send", "mill", "grain", "1"]);
    // A store alone has no socket.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = runtime.block_on(shop.store());
    let advice = "the program did not take them when it started; see its problems";
    assert_eq!(kept_events(&shop)["advice"], advice);
    drop(store);
}

#[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
struct Ground {
    sacks: u64,
}

#[cfg(unix)]
#[test]
fn schedules_are_looked_at_and_changed_over_a_space_that_runs_and_one_that_stopped() {
    use happen::{Context, Event, Space};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    let shop = Shop::closed();
    let taken = Arc::new(AtomicU32::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let space = runtime.block_on(async {
        let space = Space::open(shop.path()).await.unwrap();
        let takes = Arc::clone(&taken);
        let reports = space.node("reports");
        reports.on("report", move |_: &Event, _: &Context| {
            takes.fetch_add(1, Ordering::SeqCst);
        });
        space.start().await.unwrap();
        let report = happen::Dynamic::from_json(happen::EventType::new("report"), json!({ "of": "July" }));
        space.schedule("new-year", "0 0 1 1 *", &reports, report).await.unwrap();
        space
    });
    let listed = json(&shop, &["schedule", "ls"]);
    assert_eq!((&listed["name"], &listed["paused"]), (&"new-year".into(), &false.into()));
    assert_eq!(
        (&listed["times"], &listed["node"], &listed["type"]),
        (&"0 0 1 1 *".into(), &"reports".into(), &"report".into())
    );
    assert!(listed["due"].as_str().unwrap().contains("-01-01T00:00:00"), "{listed}");
    let line = text(&shop, &["schedule", "ls"]);
    assert!(line.starts_with("new-year  0 0 1 1 *  reports  due 20"), "{line}");

    let triggered = json(&shop, &["schedule", "trigger", "new-year"]);
    let event = triggered["events"][0].as_str().unwrap();
    assert_eq!(text(&shop, &["schedule", "pause", "new-year"]), "new-year  paused\n");
    assert!(text(&shop, &["schedule", "ls"]).ends_with("reports  paused\n"));
    assert_eq!(runtime.block_on(space.schedules().list()).unwrap()[0].due_unix_ms(), None);
    let span = ["schedule", "backfill", "new-year", "--from", "2020-06-01", "--until", "2023-01-01"];
    let lines = text(&shop, &span);
    assert_eq!(lines.lines().filter(|line| line.ends_with("  new-year  made up for")).count(), 2, "{lines}");
    assert_eq!(text(&shop, &span), "", "what was made up for once is not made up for again");
    runtime.block_on(async {
        space.settled(happen::secs(10)).await.unwrap();
        space.stop().await.unwrap();
    });
    assert_eq!(taken.load(Ordering::SeqCst), 3);
    assert!(text(&shop, &["trace", event]).contains("report"));

    assert_eq!(text(&shop, &["schedule", "resume", "new-year"]), "new-year  resumed\n");
    assert!(text(&shop, &["schedule", "ls"]).contains("due 20"));
    text(&shop, &["schedule", "pause", "new-year"]);
    for arguments in [&["schedule", "trigger", "new-year"][..], &span] {
        let told = failure(&run(&shop, arguments), 1);
        assert!(told.starts_with("no process has the store"), "{told}");
    }
    let space = runtime.block_on(async {
        let space = Space::open(shop.path()).await.unwrap();
        space.node("reports").on("report", |_: &Event, _: &Context| {});
        space.start().await.unwrap();
        space
    });
    assert!(runtime.block_on(space.schedules().list()).unwrap()[0].is_paused());
    runtime.block_on(space.stop()).unwrap();
    for act in ["pause", "resume", "rm", "trigger"] {
        let told = failure(&run(&shop, &["schedule", act, "moon"]), 4);
        assert_eq!(told, "no schedule `moon` is there", "{act}");
    }
    assert_eq!(text(&shop, &["schedule", "rm", "new-year"]), "new-year  removed\n");
    assert_eq!(text(&shop, &["schedule", "ls"]), "");
    text(&shop, &["verify"]);
    assert_eq!(run(&shop, &["schedule", "backfill", "a"]).status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn what_is_asked_for_by_hand_is_done_by_the_space_that_runs() {
    use happen::{Context, Error, Event, Space, secs};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    let shop = Shop::closed();
    let broken = Arc::new(AtomicU32::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let space = runtime.block_on(async {
        let space = Space::open(shop.path()).await.unwrap();
        let is_broken = Arc::clone(&broken);
        space.node("mill").attempts(2, secs(3_600)).on("grain", move |grain: &Event, cx: &Context| {
            if is_broken.load(Ordering::SeqCst) > 0 {
                is_broken.fetch_sub(1, Ordering::SeqCst);
                return Err(Error::msg("broken"));
            }
            cx.state::<Ground>().set(|ground| Ground { sacks: ground.sacks + 1 })?;
            Ok(grain.json()?.clone())
        });
        space.start().await.unwrap();
        space
    });
    let sacks = || space.find("mill").unwrap().state::<Ground>().get(|ground| ground.sacks);
    assert_eq!(text(&shop, &["send", "mill", "grain", "[7]", "--reply"]).replace(['\n', ' '], ""), "[7]");
    assert_eq!(json(&shop, &["send", "mill", "grain", "--reply"])["became"], "replied");
    assert_eq!(sacks(), 2);
    failure(&run(&shop, &["send", "nobody", "grain"]), 4);
    failure(&run(&shop, &["send", "mill", "sand"]), 1);

    // Each fails once: one is tried, one is cancelled.
    broken.store(2, Ordering::SeqCst);
    let [tried, gone] = ["1", "2"].map(|payload| {
        let told = json(&shop, &["send", "mill", "grain", payload, "--correlation", "c"]);
        assert_eq!(told["became"], "taken");
        told["event"].as_str().unwrap().to_owned()
    });
    while lines(&shop, &["flows", "ls"]).iter().filter(|flow| flow["stands"] == "retrying").count() < 2 {}
    assert_eq!(text(&shop, &["flows", "retry", &tried]), format!("{tried}  mill  {{{{closure}}}}  due\n"));
    assert_eq!(
        text(&shop, &["flows", "cancel", &gone]),
        format!("{gone}  mill  {{{{closure}}}}  cancelled\n")
    );
    while !lines(&shop, &["flows", "ls"]).is_empty() {}
    assert_eq!(sacks(), 3);

    // A document that a node has in memory is written through it.
    let told = failure(&run(&shop, &["state", "set", "mill", r#"{"sacks":"x"}"#, "--revision", "3"]), 1);
    assert!(told.contains("sacks") || told.contains("ground"), "{told}");
    let set = ["state", "set", "mill", r#"{"sacks":40}"#, "--revision"];
    failure(&run(&shop, &[&set[..], &["2"]].concat()), 1);
    assert_eq!(json(&shop, &[&set[..], &["3"]].concat())["revision"], 4);
    text(&shop, &["send", "mill", "grain", "--reply"]);
    assert_eq!(sacks(), 41);

    let pruned = json(&shop, &["store", "prune", "--before", "2100-01-01T00:00:00Z"]);
    assert!(pruned["records"].as_u64().unwrap() > 5, "{pruned}");
    assert_eq!(sacks(), 41);
    text(&shop, &["verify"]);
    runtime.block_on(async { space.stop().await.unwrap() });
}

#[test]
fn what_one_command_prints_another_takes() {
    let shop = Shop::open();
    let expected = "place-order +0ms  orders/validate waits  <\n\ncharge +0ms  payments/take is tried again (failed)  <\n";
    let listed = text(&shop, &["flows", "ls"]);
    let traced = fed(happen(&shop, &["trace", "-"]), &listed);
    assert_eq!(String::from_utf8(traced.stdout).unwrap(), expected);
    let ids: String = lines(&shop, &["flows", "ls"])
        .iter()
        .map(|line| format!("{}\n", line["event"].as_str().unwrap()))
        .collect();
    let traced = fed(happen(&shop, &["trace", "-"]), &ids);
    assert_eq!(String::from_utf8(traced.stdout).unwrap(), expected);

    for (from, to) in [
        (&["tail"][..], &["trace", "-", "--json"][..]),
        (&["why", "orders"], &["impact", "-"]),
        (&["dead", "ls"], &["dead", "show", "-"]),
        (&["state", "ls"], &["why", "-"]),
    ] {
        let output = fed(happen(&shop, to), &format!("\n-  a line about no event\n{}", text(&shop, from)));
        assert!(output.status.success() && !output.stdout.is_empty(), "{from:?} {to:?}: {output:?}");
    }
    failure(&fed(happen(&shop, &["trace", "-"]), "order-1\nnothing\norder-2\n"), 4);
    assert_eq!(fed(happen(&shop, &["trace", "-"]), "").stdout, b"");
}

#[test]
fn the_web_of_hashes_is_verified_too() {
    let shop = Shop::open();
    assert_eq!(
        text(&shop, &["verify"]),
        "8 records and 7 revisions of documents are as they were written\n6 events, 2 causes and 6 steps were checked, \
         the events against their hashes\n"
    );
    let told = json(&shop, &["verify"]);
    assert_eq!((&told["store"]["whole"], &told["web"]["whole"]), (&true.into(), &true.into()));

    // Another payload under the hash of the one before: whole for the store, and not for the web.
    let payload = packed(&json!({ "item": "gold" }));
    let mut forged = root("019b8d99-8070-7000-8000-000000000007", "place-order", "order-5", &payload);
    forged.hash = Some(hash_event(&root(ORDER, "place-order", "order-1", &payload)));
    let mut frame = Vec::new();
    forged.encode_into(&mut frame, 1 << 20).unwrap();
    let mut bytes = Vec::new();
    WireRecord { event: frame.into(), ..WireRecord::default() }.encode_into(&mut bytes, 1 << 20).unwrap();
    let tags = vec![Tag::Event(forged.id), Tag::Type("place-order".into())];
    shop.commit(&[Batch { records: vec![NewRecord { tags, bytes: bytes.into() }], ..Batch::default() }]);
    assert!(run(&shop, &["store", "verify"]).status.success());
    let output = run(&shop, &["verify"]);
    let told = failure(&output, 5);
    assert!(told.starts_with("the log does not fit together at 1 place; "), "{told}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        told.contains(&format!("\ndoes not fit: position 9, event {}: it does not fit its hash", forged.id)),
        "{told}"
    );
    let output = run(&shop, &["verify", "--json"]);
    let told: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["web"]["whole"], &told["web"]["first"]["position"]), (&false.into(), &9.into()));
}

#[test]
fn damage_is_told_with_its_own_exit_code() {
    let shop = Shop::open();
    assert_eq!(
        text(&shop, &["store", "verify"]),
        "8 records and 7 revisions of documents are as they were written\n"
    );
    flip(&shop.path(), b"piano");
    let output = run(&shop, &["store", "verify"]);
    let told = failure(&output, 5);
    assert_eq!(told, "the store is damaged at 1 place; keep a copy of the folder and restore a backup");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text,
        "damaged: the record at position 6\n7 records and 7 revisions of documents are as they were written\n"
    );
    let output = run(&shop, &["store", "verify", "--json"]);
    failure(&output, 5);
    let told: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["whole"], &told["damages_len"]), (&false.into(), &1.into()));
    assert_eq!(told["damages"], json!([{ "kind": "record", "position": 6 }]));

    let output = run(&shop, &["doctor"]);
    failure(&output, 5);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("fail  integrity    damaged at 1 place; the first: the record at position 6\n"),
        "{text}"
    );
    let told = failure(&run(&shop, &["store", "backup", "copy"]), 1);
    assert!(told.contains("happen store verify"), "{told}");
}

#[test]
fn a_doctor_of_a_damaged_store_tells_all_it_can() {
    let shop = Shop::open();
    flip(&shop.path(), b"approval");
    let output = run(&shop, &["doctor"]);
    assert_eq!(failure(&output, 5), "the store is damaged; keep a copy of the folder and restore a backup");
    let told = String::from_utf8(output.stdout).unwrap();
    for part in [
        "ok    last commit  ",
        "\nfail  flows        damaged: ",
        "\nwarn  dead letters ",
        "\nfail  integrity    ",
    ] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
    assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
    failure(&run(&shop, &["flows", "ls"]), 1);
    let quick = run(&shop, &["doctor", "--quick"]);
    assert_eq!(failure(&quick, 1), "1 check failed; do what is said there");
}

#[test]
fn what_a_store_has_cannot_steer_a_terminal() {
    let shop = Shop::open();
    let steering = "\u{1b}[2J\u{7}\n\u{202e}";
    let key = format!("state/{steering}/");
    let named =
        |state: &str| document(&format!("{key}{state}{steering}"), 1, "x", Some(packed(&json!(steering))));
    let id = "019b8d99-8070-7000-8000-000000000007";
    let payload = packed(&json!(steering));
    let event = root(id, steering, steering, &payload);
    let flow = WireStep::new(
        event.id,
        steering,
        steering,
        steering,
        StepOutcome::Failed(failed(id, steering).into()),
    );
    let records = vec![record(&event, &[(steering, steering)], Some(flow.clone()), true)];
    let documents = vec![named("a"), named("b"), shop::flow("dead", flow, 1)];
    shop.commit(&[Batch { records, documents, ..Batch::default() }]);
    for arguments in [
        &["tail"][..],
        &["ps"],
        &["trace", id],
        &["state", "ls"],
        &["state", "get", steering],
        &["dead", "ls"],
        &["dead", "show", id],
        &["state", "get", &format!("{key}a{steering}")],
        &["why", &format!("{key}a{steering}")],
    ] {
        let output = run(&shop, arguments);
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8(told).unwrap();
        let is_steering = |char: char| char != '\n' && (char.is_control() || char == '\u{202e}');
        let is_json = arguments[1..].first() == Some(&"get") && output.status.success();
        assert!(!told.is_empty() && (is_json || !told.contains(is_steering)), "{arguments:?}: {told:?}");
    }
}

/// Changes a bit of a text in the database.
fn flip(folder: &Path, text: &[u8]) {
    let path = folder.join("happen.db");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_running_space_is_read_beside_and_not_written() {
    let shop = Shop::open();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = runtime.block_on(shop.store());
    for arguments in READING {
        text(&shop, arguments);
    }
    text(&shop, &["store", "backup", "copy"]);
    let pid = std::process::id();
    let held = format!("./data belongs to a running space (process {pid}); stop it and try again");
    for arguments in [
        &["state", "set", "orders", "1", "--revision", "2"][..],
        &["store", "prune", "--before", "0s"],
        &["store", "restore", "copy"],
        &["demo", "--store", "./data"],
    ] {
        assert_eq!(failure(&run(&shop, arguments), 1), held);
    }
    let told = text(&shop, &["doctor", "--quick"]);
    assert!(
        told.contains(&format!("ok    lock         process {pid} has the store open to write\n")),
        "{told}"
    );
    drop(store);
    let told = text(&shop, &["doctor", "--quick"]);
    assert!(told.contains("ok    lock         no process has the store open to write\n"), "{told}");
}

#[test]
fn a_store_whose_process_was_killed_is_read_as_it_was() {
    let shop = Shop::open();
    let killed = Shop::closed();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = runtime.block_on(shop.store());
    let record = NewRecord { tags: vec![Tag::Node("late".into())], bytes: [1, 0x80, 0xc4, 0].into() };
    let documents = vec![document("state/late/x", 1, "x", Some(packed(&json!("late"))))];
    runtime
        .block_on(store.commit(vec![Batch { records: vec![record], documents, ..Batch::default() }]))
        .remove(0)
        .unwrap();
    // What a process leaves that has no time to close: its last commits are in the write-ahead log.
    fs::create_dir(killed.path()).unwrap();
    for name in ["happen.db", "happen.db-wal", "lock"] {
        fs::copy(shop.path().join(name), killed.path().join(name)).unwrap();
    }
    drop(store);
    for arguments in READING.into_iter().filter(|arguments| *arguments != ["store", "info"]) {
        assert_eq!(text(&killed, arguments), text(&shop, arguments), "{arguments:?}");
    }
    assert!(json(&killed, &["store", "info"])["log_bytes"].as_u64() > Some(0));
    assert_eq!(text(&killed, &["state", "get", "late"]), "\"late\"\n");
    let told = text(&killed, &["doctor"]);
    assert!(told.contains("\nok    lock         no process has the store open to write\n"), "{told}");
    assert!(run(&killed, &["state", "set", "late", "2", "--revision", "1"]).status.success());
    assert_eq!(text(&killed, &["state", "get", "late"]), "2\n");
}

#[test]
fn a_doctor_looks_at_everything_and_says_what_to_do() {
    let shop = Shop::open();
    let told = json(&shop, &["doctor"]);
    assert_eq!(told["folder"], "./data");
    let checks: Vec<_> =
        told["checks"].as_array().unwrap().iter().map(|check| check["check"].as_str().unwrap()).collect();
    let expected = [
        "folder",
        "permissions",
        "lock",
        "space",
        "format",
        "last commit",
        "log",
        "pruning",
        "flows",
        "dead letters",
        "kept events",
        "outbox",
        "integrity",
    ];
    assert_eq!(checks, expected);
    for check in told["checks"].as_array().unwrap() {
        assert_eq!(check["advice"] == "", check["verdict"] == "ok", "{check}");
    }
    let text = text(&shop, &["doctor"]);
    assert!(
        text.contains("ok    integrity    8 records and 7 revisions are as they were written\n"),
        "{text}"
    );
    let flows = format!("warn  flows        2 under way, 2 due, the first, of event {AGAIN}, since");
    assert!(text.lines().any(|line| flows.starts_with(line.trim_end())), "{text}");
    assert!(
        text.contains("warn  dead letters 1 flow failed for good\n                   -> see why"),
        "{text}"
    );
    assert!(text.contains("ok    last commit  2026-01-05T10:00:05.000Z, "), "{text}");

    let missing = Shop::closed();
    let output = run(&missing, &["doctor"]);
    assert_eq!(failure(&output, 1), "1 check failed; do what is said there");
    let expected = "\
fail  folder       there is no folder ./data
                   -> name the folder of a store with --store or HAPPEN_STORE
";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(fs::read_dir(missing.around()).unwrap().count(), 0);
}

#[cfg(unix)]
#[test]
fn a_folder_that_may_only_be_read_is_read() {
    use std::os::unix::fs::PermissionsExt;
    let shop = Shop::open();
    let mode = |mode| fs::set_permissions(shop.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    for arguments in READING {
        let output = run(&shop, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    mode(0o755);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let shop = Shop::open();
    let all =
        READING.into_iter().chain([&["doctor"][..], &["completion", "bash"], &["state", "ls", "--json"]]);
    for arguments in all {
        let mut command = happen(&shop, arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn locale_time_zone_and_home_change_nothing() {
    let shop = Shop::open();
    for arguments in READING {
        let expected = text(&shop, arguments);
        let mut command = happen(&shop, arguments);
        command.env("LC_ALL", "de_DE.ISO-8859-1").env("TZ", "Pacific/Chatham").env("HOME", "/nowhere");
        let expected = expected.replace('…', "~").replace("└─", "+-");
        assert_eq!(String::from_utf8(command.output().unwrap().stdout).unwrap(), expected);
        let bare = happen(&shop, arguments).env_remove("LC_ALL").env_remove("PATH").output().unwrap();
        assert_eq!(String::from_utf8(bare.stdout).unwrap(), expected);
    }
}

#[test]
fn piped_text_is_plain_and_no_wider_than_a_terminal() {
    let shop = Shop::open();
    let all = READING.into_iter().filter(|arguments| !arguments.contains(&"--json"));
    for arguments in all.chain([&["doctor"][..]]) {
        let told = text(&shop, arguments);
        for line in told.lines() {
            assert!(line.chars().count() <= 80, "{arguments:?}: {line}");
            assert!(!line.contains(char::is_control) && line.trim_end() == line, "{arguments:?}: {line:?}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let shop = Shop::open();
    for arguments in [
        &["state"][..],
        &["state", "get"],
        &["state", "set", "orders", "1"],
        &["state", "diff", "orders", "1"],
        &["store", "prune"],
        &["store", "backup"],
        &["doctor", "--fix"],
    ] {
        let output = run(&shop, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

/// The document that describes the commands.
const DOCUMENT: &str = include_str!("../../../docs/cli.md");

#[cfg(unix)]
#[test]
fn the_examples_of_the_document_are_what_is_printed() {
    let program = Path::new(env!("CARGO_BIN_EXE_happen")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths([program.to_owned()].into_iter().chain(std::env::split_paths(&path))).unwrap();
    let mut examples = 0;
    for block in DOCUMENT.split("```console\n").skip(1) {
        let block = block.split_once("```").unwrap().0;
        let shop = Shop::open();
        for example in block.split("$ ").skip(1) {
            let (line, expected) = example.split_once('\n').unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", line]).env("PATH", &path).env("LC_ALL", "C.UTF-8").env_remove("HAPPEN_STORE");
            let output = command.current_dir(shop.around()).stdin(Stdio::null()).output().unwrap();
            let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert_eq!(told, expected, "{line}");
            examples += 1;
        }
    }
    assert!(examples >= 25, "{examples}");
}

#[test]
fn the_document_has_every_command_and_every_field() {
    let shop = Shop::open();
    let commands = |of: &[&str]| {
        let help = text(&shop, &[of, &["--help"]].concat());
        let listed = help.split_once("Commands:\n").map_or("", |(_, rest)| rest).to_owned();
        let names = listed.lines().take_while(|line| !line.is_empty());
        let names: Vec<_> = names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
        names.into_iter().filter(|name| name != "help").collect::<Vec<_>>()
    };
    let all = commands(&[]);
    assert!(all.len() >= 14, "{all:?}");
    for command in &all {
        assert!(DOCUMENT.contains(&format!("happen {command}")), "{command} is missing");
        for inner in commands(&[command]) {
            assert!(DOCUMENT.contains(&format!("happen {command} {inner}")), "{command} {inner} is missing");
        }
    }
    let more =
        [&["state", "get", "orders"][..], &["store", "prune", "--before", "1d", "--dry-run"], &["doctor"]];
    for arguments in READING.into_iter().chain(more) {
        let arguments: Vec<_> = arguments.iter().copied().filter(|argument| *argument != "--json").collect();
        let told = text(&shop, &[&arguments[..], &["--json"]].concat());
        for value in serde_json::Deserializer::from_str(&told).into_iter::<Json>() {
            check_fields(&value.unwrap(), &arguments);
        }
    }
}

fn check_fields(value: &Json, arguments: &[&str]) {
    match value {
        Json::Object(fields) => {
            for (name, value) in fields {
                assert!(DOCUMENT.contains(&format!("`{name}`")), "{arguments:?}: `{name}` is missing");
                // What is inside these is the user's.
                if !["payload", "content", "values", "before", "after", "reply"].contains(&name.as_str()) {
                    check_fields(value, arguments);
                }
            }
        }
        Json::Array(items) => items.iter().for_each(|item| check_fields(item, arguments)),
        _ => {}
    }
}
