//! A root KEK that AWS KMS guards: a random key, encrypted by a key of KMS when it was made and decrypted by it at each start.
//! The ciphertext lies in a small file beside the keeper; the key of KMS never leaves KMS. The encryption context names the
//! vault, so that the ciphertext of one is none of another's and a key policy can allow one vault alone.
//!
//! Each request has a time limit and is tried again where that can help (no connection, no credentials yet, too slow, throttled,
//! a fault of the service); what the service refuses is not. Only a program that was built with the feature `aws-kms` can do this.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use super::{RootError, RootProvider};
use crate::crypto::keys::RootKek;

/// Said by a program that was built without the feature.
pub const NOT_BUILT_IN: &str = "this program was built without the feature `aws-kms`: `cargo build --release --features aws-kms` makes one with it";

/// Which key of KMS and how to reach it. Credentials are found as the AWS SDK finds them: environment, profile, container or
/// instance role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsKmsOptions {
    /// Id, ARN or alias (`alias/NAME`) of a symmetric key.
    pub key: String,
    pub region: String,
    /// Value of `pii-vault:vault` in the encryption context.
    pub vault: String,
    /// Another endpoint than the region's; plain `http` on loopback only.
    pub endpoint: Option<String>,
    /// Of one request.
    pub timeout: Duration,
    /// How long a start goes on trying a service that does not answer.
    pub wait: Duration,
    /// The file with the ciphertext.
    pub file: PathBuf,
}

/// A root KEK that AWS KMS opens.
pub struct AwsKmsRoot(pub AwsKmsOptions);

#[async_trait]
impl RootProvider for AwsKmsRoot {
    fn describe(&self) -> String {
        "aws-kms".into()
    }

    async fn load(&self) -> Result<RootKek, RootError> {
        service::load(&self.0).await
    }

    async fn destroy(&self) -> Result<bool, RootError> {
        // Copies of the ciphertext open as long as KMS has its key: it is unused, not destroyed.
        let path = self.0.file.clone();
        super::off_runtime(move || super::destroy_file(&path)).await.map(|_| false)
    }
}

impl AwsKmsRoot {
    /// Makes a random root key, lets KMS encrypt it and stores the ciphertext; where there is one already, nothing.
    pub async fn prepare(&self) -> Result<(), RootError> {
        if self.0.file.exists() { Ok(()) } else { service::make(&self.0).await }
    }
}

/// Whether an endpoint may be spoken to in clear.
pub fn is_loopback(endpoint: &str) -> bool {
    let uri: Option<http::Uri> = endpoint.parse().ok();
    uri.as_ref().and_then(http::Uri::host).is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(not(feature = "aws-kms"))]
mod service {
    use super::*;

    pub async fn load(_: &AwsKmsOptions) -> Result<RootKek, RootError> {
        Err(RootError::Form { rule: NOT_BUILT_IN })
    }

    pub async fn make(_: &AwsKmsOptions) -> Result<(), RootError> {
        Err(RootError::Form { rule: NOT_BUILT_IN })
    }
}

#[cfg(feature = "aws-kms")]
mod service {
    use std::path::Path;

    use aws_config::retry::RetryConfig;
    use aws_config::timeout::TimeoutConfig;
    use aws_config::{BehaviorVersion, Region};
    use aws_sdk_kms::Client;
    use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
    use aws_sdk_kms::primitives::Blob;
    use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
    use data_encoding::BASE64;
    use futures_util::TryFutureExt;
    use serde::{Deserialize, Serialize};
    use zeroize::Zeroizing;

    use super::*;
    use crate::crypto::random;
    use crate::keyring::root::{checked, create, off_runtime, private_file};

    const FORMAT: &str = "pii-vault aws-kms root key v1";
    const CONTEXT: &str = "pii-vault:vault";
    /// Codes of the service after which the same request may succeed; beside them 429 and what begins with 5.
    const PASSING: [&str; 7] = [
        "ThrottlingException",
        "LimitExceededException",
        "RequestLimitExceeded",
        "DependencyTimeoutException",
        "KeyUnavailableException",
        "KMSInternalException",
        "ServiceUnavailableException",
    ];

    /// What lies in the file; no secret without KMS.
    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stored {
        format: String,
        /// As the configuration named it.
        key: String,
        /// ARN of the key that it was then.
        arn: String,
        /// Base64.
        ciphertext: String,
    }

    /// Why one try did not work, and whether another may.
    enum Failed {
        Again(String),
        Refused(String),
    }

    pub async fn load(options: &AwsKmsOptions) -> Result<RootKek, RootError> {
        let path = options.file.clone();
        let stored = off_runtime(move || read_stored(&path)).await?;
        if stored.key != options.key {
            return Err(RootError::Form { rule: "the stored root key was encrypted by another key of KMS" });
        }
        let ciphertext = BASE64.decode(stored.ciphertext.as_bytes());
        let ciphertext = Blob::new(ciphertext.map_err(|_| RootError::Form { rule: "its ciphertext is not base64" })?);
        let client = client(options).await?;
        let ask = client.decrypt().key_id(&stored.arn).ciphertext_blob(ciphertext);
        let ask = ask.encryption_context(CONTEXT, &options.vault);
        let opened = tried(options, || ask.clone().send().map_err(failed)).await?;
        if opened.key_id() != Some(stored.arn.as_str()) {
            return Err(garbled());
        }
        let raw = Zeroizing::new(opened.plaintext.ok_or_else(garbled)?.into_inner());
        checked(<&[u8; 32]>::try_from(raw.as_slice()).map_err(|_| garbled())?)
    }

    pub async fn make(options: &AwsKmsOptions) -> Result<(), RootError> {
        let mut raw = Zeroizing::new([0u8; 32]);
        random::fill(raw.as_mut_slice());
        let client = client(options).await?;
        let ask = client.encrypt().key_id(&options.key).plaintext(Blob::new(raw.as_slice()));
        let ask = ask.encryption_context(CONTEXT, &options.vault);
        let sealed = tried(options, || ask.clone().send().map_err(failed)).await?;
        let (Some(arn), Some(ciphertext)) = (sealed.key_id, sealed.ciphertext_blob) else { return Err(garbled()) };
        if arn.is_empty() || arn.len() > 2_048 || !(33..=2_048).contains(&ciphertext.as_ref().len()) {
            return Err(garbled());
        }
        let ciphertext = BASE64.encode(ciphertext.as_ref());
        let stored = Stored { format: FORMAT.into(), key: options.key.clone(), arn, ciphertext };
        let mut bytes = serde_json::to_vec_pretty(&stored).map_err(|e| RootError::Io { what: e.to_string() })?;
        bytes.push(b'\n');
        let path = options.file.clone();
        off_runtime(move || create(&path, &bytes, 0o600)).await
    }

    async fn client(options: &AwsKmsOptions) -> Result<Client, RootError> {
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let times = TimeoutConfig::builder().operation_timeout(options.timeout).build();
        let shared = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http.build_https())
            .region(Region::new(options.region.clone()))
            // Tried again here, for as long as a start may wait.
            .retry_config(RetryConfig::disabled())
            .timeout_config(times)
            .load()
            .await;
        let mut config = aws_sdk_kms::config::Builder::from(&shared);
        if let Some(endpoint) = &options.endpoint {
            if !endpoint.starts_with("https://") && !is_loopback(endpoint) {
                return Err(RootError::Form { rule: "plain http to another machine: the root key would be in clear" });
            }
            config = config.endpoint_url(endpoint);
        }
        Ok(Client::from_conf(config.build()))
    }

    /// Tried again until `wait` is over.
    async fn tried<T, F: Future<Output = Result<T, Failed>>>(
        options: &AwsKmsOptions,
        once: impl Fn() -> F,
    ) -> Result<T, RootError> {
        let mut pause = Duration::from_millis(200);
        let begun = tokio::time::Instant::now();
        loop {
            let why = match tokio::time::timeout(options.timeout, once()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failed::Refused(what))) => return Err(RootError::Io { what }),
                Ok(Err(Failed::Again(what))) => what,
                Err(_) => "KMS is too slow".to_owned(),
            };
            if begun.elapsed() + pause > options.wait {
                return Err(RootError::Io { what: format!("{why}, tried for {} s", begun.elapsed().as_secs()) });
            }
            tracing::warn!(why, "KMS does not answer: trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    fn failed<E: ProvideErrorMetadata>(error: SdkError<E>) -> Failed {
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        match (&error, status) {
            (SdkError::ConstructionFailure(_), _) => Failed::Refused("the request to KMS cannot be made".into()),
            (SdkError::DispatchFailure(cause), _) if cause.is_user() => {
                Failed::Refused("the request to KMS cannot be made".into())
            }
            (SdkError::TimeoutError(_), _) => Failed::Again("KMS is too slow".into()),
            (SdkError::DispatchFailure(_), _) => {
                Failed::Again("KMS cannot be reached, or no credentials are there".into())
            }
            (_, Some(200..=299)) => Failed::Refused("KMS's answer is not what it says by its interface".into()),
            (_, status) => {
                // A name of the service's interface, told only in that form.
                let code =
                    error.code().filter(|code| code.len() < 64 && code.bytes().all(|b| b.is_ascii_alphanumeric()));
                let (code, status) = (code.unwrap_or("no code"), status.unwrap_or(0));
                match status == 429 || status >= 500 || PASSING.contains(&code) {
                    true => Failed::Again(format!("KMS answers {status} ({code})")),
                    false => Failed::Refused(format!("KMS refuses: {status} ({code})")),
                }
            }
        }
    }

    fn garbled() -> RootError {
        RootError::Io { what: "KMS's answer is not what it says by its interface".into() }
    }

    fn read_stored(path: &Path) -> Result<Stored, RootError> {
        let bytes = private_file(path)?;
        let form = RootError::Form { rule: "the file of the KMS root key is not what the vault wrote" };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| form.clone())?;
        if stored.format == FORMAT { Ok(stored) } else { Err(form) }
    }
}
