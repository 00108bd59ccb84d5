"""The words of Slurm's files that their parsers know, of 22.05 and with what later versions added. Pure.

slurmctld does not start on a word that it does not know, so one that is not here is told, with the likest that is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

_SLURM = """
AccountingStorageBackupHost AccountingStorageEnforce AccountingStorageExternalHost AccountingStorageHost
AccountingStorageParameters AccountingStoragePass AccountingStoragePort AccountingStorageTRES AccountingStorageType
AccountingStorageUser AccountingStoreFlags AcctGatherEnergyType AcctGatherFilesystemType AcctGatherInterconnectType
AcctGatherNodeFreq AcctGatherProfileType AllowSpecResourcesUsage AuthAltParameters AuthAltTypes AuthInfo AuthType
BackupAddr BackupController BatchStartTimeout BcastExclude BcastParameters BurstBufferType CertgenParameters CertgenType
CertmgrParameters CertmgrType CliFilterParameters CliFilterPlugins ClusterName CommunicationParameters CompleteWait
ControlAddr ControlMachine CoreSpecPlugin CpuFreqDef CpuFreqGovernors CredType DataParserParameters DebugFlags
DefCpuPerGPU DefMemPerCPU DefMemPerGPU DefMemPerNode DependencyParameters DisableRootJobs EioTimeout EnforcePartLimits
Epilog EpilogMsgTime EpilogSlurmctld EpilogTimeout ExtSensorsFreq ExtSensorsType FairShareDampeningFactor
FederationParameters FirstJobId GetEnvTimeout GpuFreqDef GresTypes GroupUpdateForce GroupUpdateTime HashPlugin
HealthCheckInterval HealthCheckNodeState HealthCheckProgram HttpParserType InactiveLimit Include InteractiveStepOptions
JobAcctGatherFrequency JobAcctGatherParams JobAcctGatherType JobCompHost JobCompLoc JobCompParams JobCompPass
JobCompPassScript JobCompPort JobCompType JobCompUser JobContainerType JobFileAppend JobRequeue JobSubmitPlugins
KeepAliveTime KillOnBadExit KillWait LaunchParameters LaunchType Licenses LogTimeFormat MCSParameters MCSPlugin
MailDomain MailProg MaxArraySize MaxBatchRequeue MaxDBDMsgs MaxJobCount MaxJobId MaxMemPerCPU MaxMemPerNode MaxNodeCount
MaxStepCount MaxTasksPerNode MessageTimeout MetricsType MinJobAge MpiDefault MpiParams NamespaceType NodeFeaturesPlugins
OverTimeLimit PlugStackConfig PluginDir PowerParameters PowerPlugin PrEpParameters PrEpPlugins PreemptExemptTime
PreemptMode PreemptParameters PreemptType PriorityCalcPeriod PriorityDecayHalfLife PriorityFavorSmall PriorityFlags
PriorityMaxAge PriorityParameters PrioritySiteFactorParameters PrioritySiteFactorPlugin PriorityType
PriorityUsageResetPeriod PriorityWeightAge PriorityWeightAssoc PriorityWeightFairshare PriorityWeightJobSize
PriorityWeightPartition PriorityWeightQOS PriorityWeightTRES PrivateData ProctrackType Prolog PrologEpilogTimeout
PrologFlags PrologSlurmctld PrologTimeout PropagatePrioProcess PropagateResourceLimits PropagateResourceLimitsExcept
RebootProgram ReconfigFlags RequeueExit RequeueExitHold ResumeFailProgram ResumeProgram ResumeRate ResumeTimeout
ResvEpilog ResvOverRun ResvProlog ReturnToService RoutePlugin SchedulerParameters
SchedulerTimeSlice SchedulerType ScronParameters SelectType SelectTypeParameters SlurmSchedLogFile SlurmSchedLogLevel
SlurmUser SlurmctldAddr SlurmctldDebug SlurmctldHost SlurmctldLogFile SlurmctldParameters SlurmctldPidFile
SlurmctldPlugstack SlurmctldPort SlurmctldPrimaryOffProg SlurmctldPrimaryOnProg SlurmctldSyslogDebug SlurmctldTimeout
SlurmdDebug SlurmdLogFile SlurmdParameters SlurmdPidFile SlurmdPort SlurmdSpoolDir SlurmdSyslogDebug SlurmdTimeout
SlurmdUser SrunEpilog SrunPortRange SrunProlog StateSaveLocation SuspendExcNodes SuspendExcParts SuspendExcStates
SuspendProgram SuspendRate SuspendTime SuspendTimeout SwitchParameters SwitchType TCPTimeout TLSParameters TLSType
TaskEpilog TaskPlugin TaskPluginParam TaskProlog TmpFS TopologyParam TopologyPlugin TrackWCKey TreeWidth
UnkillableStepProgram UnkillableStepTimeout UrlParserType UsePAM VSizeFactor WaitTime X11Parameters
"""
_NODE = """
NodeName BcastAddr Boards CPUs CoreSpecCount CoresPerSocket CpuBind CpuSpecList Feature Features Gres GresConf
MemSpecLimit NodeAddr NodeHostname Parameters Port Procs RealMemory Reason RestrictedCoresPerGPU Sockets SocketsPerBoard
State ThreadsPerCore TmpDisk Topology TRESWeights Weight
"""
_PARTITION = """
PartitionName AllocNodes AllowAccounts AllowGroups AllowQos Alternate CpuBind DefCpuPerGPU DefMemPerCPU DefMemPerGPU
DefMemPerNode Default DefaultTime DenyAccounts DenyQos DisableRootJobs ExclusiveTopo ExclusiveUser GraceTime Hidden
LLN MaxCPUsPerNode MaxCPUsPerSocket MaxMemPerCPU MaxMemPerNode MaxNodes MaxTime MinNodes Nodes OverSubscribe
OverTimeLimit PowerDownOnIdle PreemptMode Priority PriorityJobFactor PriorityTier QOS ReqResv ResumeTimeout RootOnly
SelectTypeParameters Shared State SuspendTime SuspendTimeout Topology TRESBillingWeights
"""
_DBD = """
AllResourcesAbsolute AllowNoDefAcct ArchiveDir ArchiveEvents ArchiveJobs ArchiveResvs ArchiveScript ArchiveSteps
ArchiveSuspend ArchiveTXN ArchiveUsage AuthAltParameters AuthAltTypes AuthInfo AuthType CommitDelay
CommunicationParameters DbdAddr DbdBackupHost DbdHost DbdPort DebugFlags DebugLevel DebugLevelSyslog DefaultQOS
DisableCoordDBD HashPlugin Include LogFile LogTimeFormat MaxPurgeLimit MaxQueryTimeRange MessageTimeout Parameters
PidFile PluginDir PrivateData PurgeEventAfter PurgeJobAfter PurgeResvAfter PurgeStepAfter PurgeSuspendAfter
PurgeTXNAfter PurgeUsageAfter SlurmUser StorageBackupHost StorageHost StorageLoc StorageParameters StoragePass
StoragePassScript StoragePort StorageType StorageUser TCPTimeout TLSParameters TLSType TrackSlurmctldDown TrackWCKey
"""
_CGROUP = """
AllowedDevicesFile AllowedKmemSpace AllowedRAMSpace AllowedSwapSpace CgroupAutomount CgroupMountpoint CgroupPlugin
CgroupReleaseAgentDir CgroupSlice ConstrainCores ConstrainDevices ConstrainKmemSpace ConstrainRAMSpace
ConstrainSwapSpace EnableControllers EnableExtraControllers IgnoreSystemd IgnoreSystemdOnFailure Include MaxKmemPercent
MaxRAMPercent MaxSwapPercent MemorySwappiness MinKmemSpace MinRAMSpace SignalChildrenProcesses SystemdTimeout
TaskAffinity
"""
_GRES = """
AutoDetect Cores CPUs Count File Files Flags Include Link Links MultipleFiles Name NodeName Type
"""
# File -> the first word of a line -> the words of such lines; "" has those that stand alone.
WORDS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "slurm.conf": {
        "": frozenset(_SLURM.split()),
        "nodename": frozenset(_NODE.split()),
        "partitionname": frozenset(_PARTITION.split()),
        "nodeset": frozenset(("NodeSet", "Feature", "Nodes")),
        "downnodes": frozenset(("DownNodes", "Reason", "State")),
        "frontendname": frozenset(("FrontendName", "FrontendAddr", "Port", "Reason", "State")),
    },
    "gres.conf": {"": frozenset(_GRES.split())},
    "cgroup.conf": {"": frozenset(_CGROUP.split())},
    "slurmdbd.conf": {"": frozenset(_DBD.split())},
    "topology.conf": {
        "": frozenset(("Include",)),
        "switchname": frozenset(("SwitchName", "LinkSpeed", "Nodes", "Switches")),
        "blockname": frozenset(("BlockName", "Nodes")),
        "blocksizes": frozenset(("BlockSizes",)),
    },
}


# What Slurm 22.05 does not know of them: asked of its own parser.
_SINCE = """
CertgenParameters CertgenType CertmgrParameters CertmgrType CliFilterParameters DataParserParameters EpilogTimeout
ExclusiveTopo GresConf HashPlugin HttpParserType JobCompPassScript MaxBatchRequeue MaxCPUsPerSocket MetricsType
NamespaceType Parameters PowerDownOnIdle PreemptParameters PrologTimeout RestrictedCoresPerGPU SuspendExcStates
TLSParameters TLSType Topology UrlParserType
"""
NEWER = frozenset(word.lower() for word in _SINCE.split())
# Of slurm.conf, from before 22.05: what became of them, and whether the daemons still start.
OLD: Mapping[str, tuple[bool, str]] = {
    "fastschedule": (
        True,
        "Leave it out: Slurm ignores it (SlurmdParameters=config_overrides is what FastSchedule=2 was)",
    ),
    "cryptotype": (True, "Leave it out: it is CredType now"),
    "jobcredentialprivatekey": (True, "Leave it out: Slurm ignores it"),
    "jobcredentialpubliccertificate": (True, "Leave it out: Slurm ignores it"),
    "accountingstorejobcomment": (False, "Write AccountingStoreFlags=job_comment"),
    "sallocdefaultcommand": (False, "Write LaunchParameters=use_interactive_step"),
    "memlimitenforce": (False, "Leave it out: ConstrainRAMSpace=yes of cgroup.conf holds jobs to their memory"),
    "cachegroups": (False, "Leave it out"),
    "dynallocport": (False, "Leave it out"),
    "checkpointtype": (False, "Leave it out"),
    "jobcheckpointdir": (False, "Leave it out"),
    "schedulerport": (False, "Leave it out"),
    "schedulerrootfilter": (False, "Leave it out"),
}


def known(file: str, word: str, first: str = "") -> bool:
    """Whether a line of ``file`` that begins with ``first`` may have ``word`` (Slurm does not look at case)."""
    return word.lower() in {one.lower() for one in _of(file, first)}


def likest(file: str, word: str, first: str = "") -> str | None:
    by_lower = {one.lower(): one for one in _of(file, first)}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def _of(file: str, first: str) -> frozenset[str]:
    kinds = WORDS.get(file, {})
    return kinds.get(first.lower(), kinds.get("", frozenset()))
