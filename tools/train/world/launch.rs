//! The launcher that started this process, and the number of others: from what mpirun, srun and mpiexec put into the environment.

/// A launcher's information about this process. The rank and size that are used come from MPI itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    pub by: &'static str,
    /// Processes that were started.
    pub size: usize,
    pub rank: usize,
    /// Its number among those on the same host.
    pub local: usize,
    /// Whether they can find each other: tasks that `srun --mpi=none` starts cannot.
    pub joined: bool,
}

impl Launch {
    /// `None` for a process that was started alone. `SLURM_NTASKS` and the like are not used: they are set inside a batch script
    /// although only one process runs.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| get(name)?.parse::<usize>().ok();
        let launch = |by, size, rank, local, joined| {
            let (size, rank, local) = (number(size)?, number(rank)?, number(local).unwrap_or(0));
            Some(Self { by, size, rank, local, joined })
        };
        let pmi = get("PMIX_RANK").is_some() || get("PMI_RANK").is_some();
        launch("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", true)
            .or_else(|| launch("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", pmi))
            .or_else(|| launch("mpiexec", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", true))
    }

    /// The error for processes that cannot find each other. Each would train alone, all into the same folder.
    pub fn separation_error(&self) -> String {
        let Self { by, size, .. } = self;
        let why = match *by {
            _ if !cfg!(feature = "mpi") => "this build has no MPI; build it with --features mpi",
            "srun" => "start them with `srun --mpi=pmix`",
            _ => "it belongs to another MPI than the one this program was built with",
        };
        format!("{by} started {size} processes that cannot find each other: {why}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Option<Launch> {
        Launch::read(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_are_told_apart_from_batch_scripts() {
        // The batch script of a job with eight tasks, and a step of it with one.
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0")]), None);
        let step = [("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1"), ("SLURM_LOCALID", "0")];
        let apart = Launch { by: "srun", size: 2, rank: 1, local: 0, joined: false };
        assert_eq!(read(&step), Some(apart));
        assert_eq!(read(&[&step[..], &[("PMIX_RANK", "1")]].concat()), Some(Launch { joined: true, ..apart }));
        // mpirun inside a Slurm job: its daemons are the job's steps.
        let ours = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_LOCAL_RANK", "1")];
        let launch = Launch { by: "mpirun", size: 4, rank: 3, local: 1, joined: true };
        assert_eq!(read(&[&step[..], &ours[..]].concat()), Some(launch));
    }
}
