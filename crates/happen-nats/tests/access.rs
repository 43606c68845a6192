//! How processes get into servers that ask who they are, and what becomes of those that are not let in; and how processes
//! sign what they send each other there. Servers are real.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::ConnectOptions;
use happen::env::RealEnv;
use happen::identity::{Identity, TrustStore, Trusted};
use happen::store::{Read, Select, Tag};
use happen::{Context, Error, Event, Space};
use happen_core::env::Env;
use happen_core::key::{KeyKind, Seed, Signer as _};
use happen_ed25519::KeyPair;
use happen_nats::{Access, Connector, Nats};
use happen_testing::NatsServer;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer};
use serde_json::{Value as Json, json};

fn key(kind: KeyKind, number: u8) -> KeyPair {
    KeyPair::from_seed(&Seed::new(kind, [number; 32]))
}

fn user(number: u8) -> KeyPair {
    key(KeyKind::User, number)
}

/// Opens a space, has it do something that needs the link and the log, and closes it.
async fn works(nats: Nats) -> Result<(), Error> {
    let space = nats.open().await?;
    space.node("echo").on("string", |said: &Event<String>, _: &Context| said.to_uppercase());
    space.start().await?;
    assert_eq!(*space.send("echo", "hello".to_owned()).reply::<String>().await?, "HELLO");
    space.stop().await
}

/// Why nobody is let in, found out at once and not after a while.
async fn refused(url: &str, access: &Access) -> String {
    let env = RealEnv::new();
    let begun = env.monotonic();
    let error = works(Nats::at(url).access(access.clone())).await.unwrap_err();
    assert!(env.monotonic() - begun < Duration::from_secs(8), "it was waited for: {error}");
    error.chain().join(": ")
}

async fn until(env: &dyn Env, mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        env.sleep(Duration::from_millis(10)).await;
    }
    panic!("this takes longer than half a minute");
}

/// Files of certificates: an authority, a server at 127.0.0.1, a client `ada`, and an authority that signed none of them.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = |name: &str| {
            let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            fs::write(folder.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            Issuer::new(params, key)
        };
        let issuer = authority("ca");
        authority("other-ca");
        for (name, at) in [("server", vec!["127.0.0.1".to_owned()]), ("ada", Vec::new())] {
            let mut params = CertificateParams::new(at).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            fs::write(folder.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn server(&self, more_tls: &str, more: &str) -> NatsServer {
        let [certificate, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| self.file(name));
        NatsServer::with(&format!(
            "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {ca:?}, {more_tls} }}\n{more}"
        ))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_believed_by_its_certificate() {
    let certificates = Certificates::new();
    let server = certificates.server("", "");
    let url = format!("{}/shop", server.url());
    let access = Access::new().ca_file(certificates.file("ca.pem"));
    for url in [url.clone(), url.replace("nats://", "tls://")] {
        works(Nats::at(&url).access(access.clone())).await.unwrap();
        let other = Access::new().ca_file(certificates.file("other-ca.pem"));
        let told = refused(&url, &other).await;
        assert!(told.contains("invalid peer certificate"), "{told}");
        // The machine's own authorities have not signed it.
        let told = refused(&url, &Access::new()).await;
        assert!(told.contains("certificate") || told.contains("certs"), "{told}");
    }
    let told = refused(&url, &Access::new().ca_file(certificates.file("none.pem"))).await;
    assert!(told.contains("none.pem"), "{told}");
    let told = refused(&url, &Access::new().ca_file(certificates.file("ada.key"))).await;
    assert!(told.contains("ada.key should have a certificate in PEM"), "{told}");
    // A server without certificates is none that was asked for.
    let plain = NatsServer::start();
    let nats = Nats::at(format!("{}/shop", plain.url())).access(access).open_wait(Duration::from_millis(200));
    let told = works(nats).await.unwrap_err();
    assert!(told.to_string().starts_with("connecting to nats://127.0.0.1"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_known_by_its_certificate() {
    let certificates = Certificates::new();
    let server = certificates.server(
        "verify_and_map: true",
        "authorization { users: [{ user: \"CN=ada\" }, { user: \"CN=bob\" }] }",
    );
    let url = format!("{}/shop", server.url());
    let access = Access::new().ca_file(certificates.file("ca.pem"));
    let (certificate, key) = (certificates.file("ada.pem"), certificates.file("ada.key"));
    works(Nats::at(&url).access(access.clone().certificate(&certificate, &key))).await.unwrap();
    refused(&url, &access).await;
    // Its authority signed this one too, and nobody of that name is let in.
    refused(
        &url,
        &access.clone().certificate(certificates.file("server.pem"), certificates.file("server.key")),
    )
    .await;
    let told = refused(&url, &access.clone().certificate(&certificate, &certificate)).await;
    assert!(told.contains("ada.pem should have a key of a certificate in PEM: there is none"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_signs_in_with_a_password_or_a_token() {
    let server = NatsServer::with("authorization { user: ada, password: \"s3 cret\" }");
    let url = format!("{}/shop", server.url());
    works(Nats::at(&url).access(Access::new().password("ada", "s3 cret"))).await.unwrap();
    let options = ConnectOptions::new().user_and_password("ada".into(), "s3 cret".into());
    works(Nats::at(&url).sign_in(options.clone())).await.unwrap();
    // What stands in the address comes first.
    let named = url.replace("//", "//ada:s3%20cret@");
    works(Nats::at(&named).access(Access::new().password("ada", "wr0ng"))).await.unwrap();
    let wrong = url.replace("//", "//ada:wr0ng@");
    for (url, access) in [
        (&url, Access::new()),
        (&url, Access::new().password("ada", "wr0ng")),
        (&url, Access::new().token("wr0ng")),
        (&wrong, Access::new().password("ada", "s3 cret")),
    ] {
        let told = refused(url, &access).await;
        assert!(told.contains("authorization violation"), "{told}");
        assert!(!told.contains("wr0ng") && !told.contains("s3 cret"), "{told}");
    }
    let both = Connector::new(server.url()).access(Access::new().token("t")).options(options).connect().await;
    assert_eq!(both.unwrap_err().code(), "misuse");

    let server = NatsServer::with("authorization { token: s3cret }");
    works(Nats::at(format!("{}/shop", server.url())).access(Access::new().token("s3cret"))).await.unwrap();
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(name);
    fs::write(&file, text).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_signs_in_with_an_nkey() {
    let known = user(1).public_key();
    let server = NatsServer::with(&format!("authorization {{ users: [{{ nkey: {known} }}] }}"));
    let url = format!("{}/shop", server.url());
    let folder = tempfile::tempdir().unwrap();
    let file = |name, number: u8| write(folder.path(), name, &user(number).seed().reveal());
    works(Nats::at(&url).access(Access::new().nkey_file(file("known.nk", 1)))).await.unwrap();
    let told = refused(&url, &Access::new().nkey_file(file("other.nk", 2))).await;
    assert!(told.contains("authorization violation"), "{told}");
    assert!(!told.contains(&user(2).seed().reveal()), "{told}");
    let told = refused(&url, &Access::new().nkey_file(write(folder.path(), "bad.nk", "SUNOSEED"))).await;
    assert!(told.contains("bad.nk") && !told.contains("SUNOSEED"), "{told}");
}

/// The base64 of URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for some in bytes.chunks(3) {
        let bits =
            some.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - some.len()));
        let letters = (0..=some.len()).map(|at| LETTERS[(bits >> (18 - 6 * at)) as usize & 63]);
        text.extend(letters.map(char::from));
    }
    text
}

/// A JWT about a key, as servers of NATS have it.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &Json) -> String {
    let header = base64(json!({ "typ": "JWT", "alg": "ed25519-nkey" }).to_string().as_bytes());
    let subject = subject.public_key().to_string();
    let claims = json!({
        "jti": subject, "iat": 1_700_000_000, "iss": issuer.public_key().to_string(), "sub": subject, "name": "test",
        "nats": nats,
    });
    let signed = format!("{header}.{}", base64(claims.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", base64(signature.as_bytes()))
}

/// A server of an operator with one account, and the files of credentials of its users.
struct Operated {
    server: NatsServer,
    account: KeyPair,
    folder: tempfile::TempDir,
}

impl Operated {
    fn start() -> Self {
        let operator = key(KeyKind::Operator, 1);
        let [system, account] = [2, 3].map(|number| key(KeyKind::Account, number));
        let of_operator =
            json!({ "type": "operator", "version": 2, "system_account": system.public_key().to_string() });
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let of_account = json!({ "type": "account", "version": 2, "limits": limits });
        let without = json!({ "type": "account", "version": 2, "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        } });
        let config = format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n {}: {}\n {}: {}\n}}",
            jwt(&operator, &operator, &of_operator),
            system.public_key(),
            system.public_key(),
            jwt(&operator, &system, &without),
            account.public_key(),
            jwt(&operator, &account, &of_account),
        );
        Self { server: NatsServer::with(&config), account, folder: tempfile::tempdir().unwrap() }
    }

    /// Writes a file of credentials in which the account, or somebody else, lets this user in.
    fn credentials(&self, name: &str, number: u8, issuer: &KeyPair) -> PathBuf {
        let nats = json!({
            "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
        });
        let token = jwt(issuer, &user(number), &nats);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n************ IMPORTANT *********\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user(number).seed().reveal()
        );
        write(self.folder.path(), name, &text)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_signs_in_with_a_file_of_credentials_and_again_with_what_took_its_place() {
    let mut operated = Operated::start();
    let url = format!("{}/shop", operated.server.url());
    let file = operated.credentials("ada.creds", 11, &operated.account);
    let access = Access::new().credentials_file(&file);
    works(Nats::at(&url).access(access.clone())).await.unwrap();
    let other = operated.credentials("other.creds", 12, &key(KeyKind::Account, 9));
    let told = refused(&url, &Access::new().credentials_file(&other)).await;
    assert!(told.contains("authorization violation"), "{told}");

    // The next connection is made with what is there then.
    let connection = Connector::new(operated.server.url()).access(access).connect().await.unwrap();
    let client = connection.client().clone();
    operated.credentials("ada.creds", 13, &operated.account);
    operated.server.restart();
    let mut tries = 0;
    let told: Json = loop {
        // A request may be lost with the old connection; it ends by itself.
        match client.request("$SYS.REQ.USER.INFO", "".into()).await {
            Ok(answer) => break serde_json::from_slice(&answer.payload).unwrap(),
            Err(error) => assert!(tries < 1_000, "{error}"),
        }
        tries += 1;
        RealEnv::new().sleep(Duration::from_millis(10)).await;
    };
    let traffic = connection.traffic();
    assert_eq!(traffic.connects, 2);
    assert!(traffic.out_messages >= 1 && traffic.in_messages >= 1 && traffic.in_bytes > 0, "{traffic:?}");
    assert_eq!(told["data"]["user"], user(13).public_key().to_string(), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_sign_what_they_send_over_nats_and_a_durable_node_keeps_the_refusals() {
    const SHOP: u8 = 1;
    const BANK: u8 = 2;
    const STRANGER: u8 = 3;
    let server = NatsServer::start();
    let url = format!("{}/shop", server.url());
    let trust = TrustStore::new();
    trust.trust(Trusted::new(user(SHOP).public_key()).nodes(["orders", ""])).unwrap();
    trust.trust(Trusted::new(user(BANK).public_key()).nodes(["till", "audit", ""])).unwrap();
    let identity = |number| Identity::new(user(number)).trust(&trust);
    let open = async |member: &str, identity: Option<Identity>| {
        let mut nats = Nats::at(&url).member(member);
        if let Some(identity) = identity {
            nats = nats.identity(identity);
        }
        nats.open().await.unwrap()
    };
    let bank = |space: &Space, kept: &Arc<Mutex<Vec<Json>>>| {
        space.node("till").ephemeral().on("u64", |cents: &Event<u64>, _: &Context| **cents + 1);
        let push = Arc::clone(kept);
        space.node("audit").on("system.refused", move |told: &Event, _: &Context| {
            push.lock().unwrap().push(json!([told.get("distrust"), told.get("key")]));
        });
    };
    let kept = Arc::default();
    let banking = open("bank", Some(identity(BANK))).await;
    bank(&banking, &kept);
    banking.start().await.unwrap();
    let mut askers = Vec::new();
    for (member, identity) in
        [("shop", Some(identity(SHOP))), ("stranger", Some(identity(STRANGER))), ("plain", None)]
    {
        let space = open(member, identity).await;
        space.start().await.unwrap();
        until(&**space.env(), || space.remote_nodes().iter().any(|node| node.id == "till")).await;
        askers.push(space);
    }
    let answers = async |asker: &Space| asker.send("till", 7u64).reply::<u64>().await.map(|cents| *cents);
    assert_eq!(answers(&askers[0]).await.unwrap(), 8);
    assert_eq!(answers(&askers[1]).await.unwrap_err().code(), "untrusted");
    assert_eq!(answers(&askers[2]).await.unwrap_err().code(), "untrusted");
    until(&**banking.env(), || kept.lock().unwrap().len() == 2).await;
    let stranger = user(STRANGER).public_key().to_string();
    assert_eq!(*kept.lock().unwrap(), [json!(["unknown-key", stranger]), json!(["unsigned", null])]);
    assert_eq!(banking.refused_frames(), 2);
    for space in askers {
        space.stop().await.unwrap();
    }
    banking.stop().await.unwrap();

    // They are in the log, for whoever looks later.
    let later = open("later", None).await;
    let refusals = Select::tag(Tag::Type("system.refused".into()));
    let kept = later.store().read(Read::forward(refusals)).await.unwrap().records;
    assert_eq!(
        kept.iter().filter(|record| record.tags.iter().any(|tag| matches!(tag, Tag::Event(_)))).count(),
        2
    );
    drop(later.stop().await);
}
