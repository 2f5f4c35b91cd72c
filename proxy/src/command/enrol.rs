//! `weft-proxy identity`: a mesh certificate in files, renewed in time.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, ValueHint};
use tokio::signal::unix::{SignalKind, signal};

use super::{log, runtime};
use crate::{
    config::{ConfigError, LogArgs, Mistake, SettingsArgs, Source},
    identity::{Issuer, files},
    tls::{CurrentTls, MeshTls, unix_now},
};

/// Keep a mesh certificate in files, for programs that speak mesh TLS themselves
///
/// Writes cert.pem, key.pem (mode 0600) and bundle.pem, each by a rename, and renews them at half of the certificate's life.
/// A valid certificate authenticates its renewal; the join token is needed for the first certificate only.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  weft-proxy identity --config proxy.yaml --out /run/weft/svid
  weft-proxy identity --config proxy.yaml --out . --once")]
pub struct IdentityArgs {
    #[command(flatten)]
    settings: SettingsArgs,

    /// The directory; created if it is missing
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: PathBuf,

    /// Get one certificate, then exit
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    log: LogArgs,
}

/// Gets and renews certificates until SIGTERM or SIGINT.
pub(super) fn run(args: &IdentityArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.read()?;
    let Source::ControlPlane(join) = settings.source else {
        return Err(ConfigError::Mistakes {
            path: args.settings.config.clone(),
            mistakes: vec![Mistake {
                line: None,
                text: "spec.controlPlane: required, as it issues the certificate".to_owned(),
            }],
        }
        .into());
    };
    log::start(&args.log)?;
    let tls = Arc::new(CurrentTls::empty());
    let account = settings.workload.service_account();
    // A valid certificate from an earlier run authenticates the next request, so that the join token is not needed.
    match files::read(&args.out).and_then(|svid| MeshTls::new(svid, settings.tls.records)) {
        Ok(known) if known.not_after > unix_now() => {
            tracing::info!(identity = %known.identity, not_after = known.not_after, "using the certificate in the directory");
            tls.store(Some(Arc::new(known)));
        }
        Ok(_) => tracing::info!("the certificate in the directory has expired"),
        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no certificate in the directory"),
    }
    let issuer = Issuer::new(join, settings.mark, settings.tls.records, tls, &settings.namespace, account);
    runtime()?.block_on(async {
        if args.once {
            let new = issuer.renew().await?;
            files::write(&new.svid, &args.out)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let out = args.out.clone();
        let keep = issuer.keep(move |outcome| {
            if let Ok(tls) = outcome
                && let Err(error) = files::write(&tls.svid, &out)
            {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot write the certificate");
            }
        });
        tokio::select! {
            () = Box::pin(keep) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
