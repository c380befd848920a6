//! The official SDK for Rust: host URL http|auto
//!
//! As it comes, it asks for 2026-07-28 in the handshake of the revisions before it.
use rmcp::{
    model::{CallToolRequestParams, ClientCapabilities, ClientConfig, Implementation, ProtocolVersion},
    service::{serve_client_with_lifecycle, ClientLifecycleMode},
    transport::StreamableHttpClientTransport,
};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let lifecycle = match arguments[2].as_str() {
        "auto" => ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: None,
        },
        _ => ClientLifecycleMode::Initialize,
    };
    let name = Implementation::new(format!("host-rust-{}", arguments[2]), "1.0");
    let info = ClientConfig::new(ClientCapabilities::default(), name);
    let transport = StreamableHttpClientTransport::from_uri(arguments[1].as_str());
    let client = serve_client_with_lifecycle(info, transport, lifecycle).await?;
    for tool in client.list_all_tools().await? {
        println!("{}", tool.name);
    }
    for (name, given) in [
        ("add", json!({"a": 1, "b": 2})),
        ("add", json!({"a": 3, "b": 4})),
        ("fail", json!({})),
    ] {
        let call = CallToolRequestParams::new(name).with_arguments(given.as_object().unwrap().clone());
        match client.call_tool(call).await {
            Ok(result) => println!("{name} failed: {:?}", result.is_error),
            Err(error) => println!("{name} refused: {error}"),
        }
    }
    client.cancel().await?;
    Ok(())
}
