//! The flags of `search`: those of `send`, of which some mean more here, and the far end's.

use std::net::SocketAddrV4;
use std::num::NonZeroU64;
use std::time::Duration;

use clap::{ArgGroup, Args};
use peregrine_memif::{ClientConfig, Secret, SocketAddr};

use super::receive::{PAUSE, WaitName};
use super::{SendArgs, seconds};
use crate::error::Error;
use crate::limits::check_core;
use crate::pacer::Rate;
use crate::profile::{Draft, Sizes};
use crate::search::Goals;
use crate::search::device::SearchSettings;
use crate::search::receiver::{FarEnd, ReceiverSettings};

/// The far ends that are no memif server.
const OTHER_ENDS: [&str; 2] = ["sink_udp", "rtt"];

/// Flags of `search`.
#[derive(Clone, Debug, Args)]
#[command(
    group(ArgGroup::new("far_end").args(["sink_memif", "sink_udp", "rtt"]).required(true)),
    mut_arg("rate", |arg| arg.default_value("max").help("The highest rate to try, or 'max'")),
    mut_arg("seconds", |arg| arg.default_value("60").help("Time for the search of each size, at most")),
    mut_arg("count", |arg| arg.hide(true)),
    mut_arg("rtt_counts", |arg| arg.hide(true)),
    mut_arg("no_floor", |arg| arg.help("Do not measure the generator's own latency before the search")),
    mut_arg("replay", |arg| arg.hide(true)),
    mut_arg("pace", |arg| arg.hide(true)),
    mut_arg("loops", |arg| arg.hide(true)),
    mut_arg("replay_partial", |arg| arg.hide(true)),
    mut_arg("replay_limit", |arg| arg.hide(true)),
    mut_arg("quiet", |arg| arg.help("No line for each trial on standard error")),
)]
pub struct SearchArgs {
    /// What is sent.
    #[command(flatten)]
    pub send: SendArgs,
    /// Count at a client of this memif server: a path, or @name for an abstract socket
    #[arg(long, value_name = "SOCKET")]
    sink_memif: Option<SocketAddr>,
    /// Interface id at that server
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = OTHER_ENDS)]
    sink_id: u32,
    /// Secret that it wants
    #[arg(long, value_name = "S", default_value = "", conflicts_with_all = OTHER_ENDS)]
    sink_secret: String,
    /// Slots of the memif ring
    #[arg(long, value_name = "N", default_value_t = 16384, conflicts_with_all = OTHER_ENDS)]
    sink_ring_size: u16,
    /// Bytes of each memif buffer
    #[arg(long, value_name = "BYTES", default_value_t = 2048, conflicts_with_all = OTHER_ENDS)]
    sink_buffer_size: u32,
    /// Count at a UDP socket of the kernel
    #[arg(long, value_name = "IP:PORT")]
    sink_udp: Option<SocketAddrV4>,
    /// Network namespace of that socket
    #[arg(long, value_name = "NAME")]
    sink_netns: Option<String>,
    /// Core of the thread that counts
    #[arg(long, value_name = "N", conflicts_with = "rtt")]
    sink_core: Option<usize>,
    /// What it does while nothing is there
    #[arg(long, value_enum, default_value = "yield", conflicts_with = "rtt")]
    sink_wait: WaitName,
    /// Sizes of the inner frame to search, one after the other, instead of --size
    #[arg(long, value_name = "BYTES,...", value_delimiter = ',', conflicts_with = "size")]
    sizes: Vec<usize>,
    /// The loss that PDR allows, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.5)]
    loss: f64,
    /// How far apart the bounds are in the end, in percent of the rate: 1 to 5
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    width: f64,
    /// Length of the first trials [default: 0.2, or --trial-seconds if that is less]
    #[arg(long, value_name = "N", value_parser = seconds)]
    first_trial_seconds: Option<Duration>,
    /// Length of the trials that decide
    #[arg(long, value_name = "N", default_value = "1", value_parser = seconds)]
    trial_seconds: Duration,
    /// Time that a rate is tried in the end, in all, at most; half of it must be good
    #[arg(long, value_name = "N", default_value = "3", value_parser = seconds)]
    sum_seconds: Duration,
    /// Trials for each size, at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    trials: u16,
    /// The lowest rate of interest
    #[arg(long, value_name = "PPS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate_min: u64,
    /// The rate to begin at if not all arrives at the highest [default: what then arrived]
    #[arg(long, value_name = "PPS", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate_start: Option<u64>,
    /// Packets that may leave late in a trial with loss that counts, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    late: f64,
    /// How long latency is measured at 10, 50 and 90 % of NDR each
    #[arg(long, value_name = "N", default_value = "1", value_parser = seconds, conflicts_with = "no_latency")]
    latency_seconds: Duration,
    /// Do not measure latency
    #[arg(long)]
    no_latency: bool,
}

impl SearchArgs {
    /// What the flags mean.
    ///
    /// # Errors
    /// [`Error::Arguments`] if they contradict each other.
    pub fn settings(&self) -> Result<SearchSettings, Error> {
        if self.send.count.is_some() {
            return Err(Error::Arguments("--count: a search ends by --seconds or --trials".into()));
        }
        if self.send.rtt_counts.is_some() {
            return Err(Error::Arguments("--rtt-counts: it is `send --rtt` that writes them".into()));
        }
        let send = self.send.settings()?;
        let Some(profile) = send.profile() else {
            return Err(Error::Arguments("--replay: a search sends what flags or a --profile say".into()));
        };
        self.sizes.iter().try_for_each(|size| profile.flows.check_size("--sizes", *size))?;
        let sizes = if self.sizes.is_empty() {
            vec![profile.sizes.clone()]
        } else {
            self.sizes.iter().map(|size| Sizes::fixed(*size)).collect()
        };
        let flows = profile.flows.count as usize;
        let goals = self.goals(profile.rate)?;
        let least = NonZeroU64::new(goals.pps_min).map(Rate::Pps);
        if !least.is_some_and(|least| profile.has_rate_for_each(least)) {
            let what =
                format!("--rate-min {}: less than 1 for each of --threads {}", goals.pps_min, send.threads);
            return Err(Error::Arguments(what));
        }
        let receiver = self.far_end()?.map(|far_end| ReceiverSettings {
            far_end,
            core: self.sink_core,
            wait: self.sink_wait.with_pause(PAUSE),
            flows,
        });
        if let Some(Err(Error::Arguments(what))) = self.sink_core.map(check_core) {
            return Err(Error::Arguments(what.replacen("--core", "--sink-core", 1)));
        }
        let profile_unused = self.profile_unused()?;
        let latency = if self.no_latency { Duration::ZERO } else { self.latency_seconds };
        let floor = !self.send.no_floor && !latency.is_zero();
        Ok(SearchSettings { send, receiver, sizes, goals, latency, floor, profile_unused })
    }

    /// What a profile says for `send` that a search decides itself: `--rate` and `--seconds` have defaults here, which count more.
    fn profile_unused(&self) -> Result<Vec<&'static str>, Error> {
        let Some(file) = &self.send.flows.profile else { return Ok(Vec::new()) };
        let Draft { rate, seconds, count, .. } = Draft::read(file)?;
        let there = [("rate", rate.is_some()), ("seconds", seconds.is_some()), ("count", count.is_some())];
        Ok(there.into_iter().filter_map(|(key, is_there)| is_there.then_some(key)).collect())
    }

    fn goals(&self, rate: Rate) -> Result<Goals, Error> {
        let pps_max = match rate {
            Rate::Pps(pps) => Some(pps),
            Rate::Max => None,
            Rate::Bits(_) => {
                let what =
                    format!("--rate {rate}: a search counts packets; give packets per second, or 'max'");
                return Err(Error::Arguments(what));
            }
        };
        let part = |flag: &str, percent: f64, least: f64, most: f64| {
            let what = || Error::Arguments(format!("{flag} {percent}: a percentage from {least} to {most}"));
            (percent >= least && percent <= most).then_some(percent / 100.0).ok_or_else(what)
        };
        if let Some(most) = pps_max.filter(|most| most.get() < self.rate_min) {
            let what = format!("--rate-min {}: more than --rate {most}, the highest", self.rate_min);
            return Err(Error::Arguments(what));
        }
        let usual = Goals::default().first_trial.min(self.trial_seconds);
        let first_trial = self.first_trial_seconds.unwrap_or(usual);
        if first_trial > self.trial_seconds {
            let what = "--first-trial-seconds: the first trials are no longer than --trial-seconds";
            return Err(Error::Arguments(what.into()));
        }
        Ok(Goals {
            pdr_loss: part("--loss", self.loss, 0.0, 99.0)?,
            width: part("--width", self.width, 1.0, 5.0)?,
            first_trial,
            last_trial: self.trial_seconds,
            sum: self.sum_seconds.max(self.trial_seconds),
            pps_min: self.rate_min,
            pps_max,
            pps_start: self.rate_start,
            trials_max: usize::from(self.trials),
            time_max: self.send.seconds.unwrap_or(Goals::default().time_max),
            late_max: part("--late", self.late, 0.0, 100.0)?,
        })
    }

    /// `None`: the answers are counted.
    fn far_end(&self) -> Result<Option<FarEnd>, Error> {
        if let Some(address) = self.sink_udp {
            return Ok(Some(FarEnd::Udp(address, self.sink_netns.clone())));
        }
        if self.sink_netns.is_some() {
            return Err(Error::Arguments("--sink-netns: it is --sink-udp that can be in a namespace".into()));
        }
        let Some(socket) = self.sink_memif.clone() else { return Ok(None) };
        let refused = |flag: &str, why: &dyn std::fmt::Display| Error::Arguments(format!("{flag}: {why}"));
        if !self.sink_ring_size.is_power_of_two() {
            let why = format!("{} is no power of two, such as 1024", self.sink_ring_size);
            return Err(refused("--sink-ring-size", &why));
        }
        let config = ClientConfig {
            id: self.sink_id,
            name: "peregrine-pktgen".into(),
            secret: Secret::new(self.sink_secret.as_bytes()).map_err(|why| refused("--sink-secret", &why))?,
            ring_log2: self.sink_ring_size.trailing_zeros() as u8,
            buffer_bytes: self.sink_buffer_size,
            ..ClientConfig::default()
        };
        config.check().map_err(|why| refused("--sink-ring-size or --sink-buffer-size", &why))?;
        Ok(Some(FarEnd::Memif(socket, config)))
    }
}
