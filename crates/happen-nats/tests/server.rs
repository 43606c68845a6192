//! The servers of the tests themselves: they start, are killed and start again where they were.

use happen_testing::{NatsCluster, NatsServer};

#[tokio::test]
async fn a_server_is_found_again_where_it_was() {
    let mut server = NatsServer::start();
    let client = async_nats::connect(server.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config { name: "kept".into(), ..Default::default() };
    context.create_stream(config).await.unwrap();
    let url = server.url();
    server.restart();
    assert_eq!(server.url(), url);
    let client = async_nats::connect(url).await.unwrap();
    let context = async_nats::jetstream::new(client);
    assert!(context.get_stream("kept").await.is_ok());
}

#[tokio::test]
async fn three_servers_form_a_cluster() {
    let mut cluster = NatsCluster::start(3);
    let client = async_nats::connect(cluster.servers[0].url()).await.unwrap();
    assert_eq!(client.server_info().cluster.as_deref(), Some("happen"));
    cluster.servers[1].restart();
    assert!(cluster.named("server-2").is_some());
    assert!(cluster.named("server-3").is_none());
}
