package api

import (
	"time"

	"github.com/godwit-vmm/godwit/migrate/live"
)

// The bodies of requests and answers, with the names of Firecracker's. A field with
// api:"required" has to be there in a request. What is described in openapi.yaml is
// not said again here.

// Info is the answer of GET /.
type Info struct {
	AppName string `json:"app_name"`
	ID      string `json:"id"`
	State   string `json:"state"`
	Version string `json:"vmm_version"`
}

// Version is the answer of GET /version.
type Version struct {
	Version string `json:"firecracker_version"`
}

// Machine is the body of GET and PUT /machine-config.
type Machine struct {
	CPUs       int    `json:"vcpu_count" api:"required"`
	MemoryMiB  uint64 `json:"mem_size_mib" api:"required"`
	SMT        bool   `json:"smt"`
	TrackDirty bool   `json:"track_dirty_pages"`
	HugePages  string `json:"huge_pages"`
	Template   string `json:"cpu_template,omitempty"`
}

// MachineUpdate is the body of PATCH /machine-config.
type MachineUpdate struct {
	CPUs       *int    `json:"vcpu_count"`
	MemoryMiB  *uint64 `json:"mem_size_mib"`
	SMT        *bool   `json:"smt"`
	TrackDirty *bool   `json:"track_dirty_pages"`
	HugePages  *string `json:"huge_pages"`
	Template   *string `json:"cpu_template"`
}

// BootSource is the body of PUT /boot-source. BootArgs is nil for godwit's own words.
type BootSource struct {
	Kernel   string  `json:"kernel_image_path" api:"required"`
	Initrd   string  `json:"initrd_path,omitempty"`
	BootArgs *string `json:"boot_args,omitempty"`
}

// TokenBucket is one limit of a RateLimiter: Size tokens come in RefillTime
// milliseconds, and that many may be used at once, after OneTimeBurst more at first.
type TokenBucket struct {
	Size         uint64 `json:"size" api:"required"`
	OneTimeBurst uint64 `json:"one_time_burst,omitempty"`
	RefillTime   uint64 `json:"refill_time" api:"required"`
}

// RateLimiter limits bytes and operations.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	Ops       *TokenBucket `json:"ops,omitempty"`
}

// Drive is the body of PUT /drives/{drive_id}.
type Drive struct {
	ID        string       `json:"drive_id" api:"required"`
	Path      string       `json:"path_on_host"`
	Root      *bool        `json:"is_root_device" api:"required"`
	ReadOnly  bool         `json:"is_read_only"`
	PartUUID  string       `json:"partuuid,omitempty"`
	CacheType string       `json:"cache_type,omitempty"`
	IOEngine  string       `json:"io_engine,omitempty"`
	Limiter   *RateLimiter `json:"rate_limiter,omitempty"`
	Socket    string       `json:"socket,omitempty"`
}

// DriveUpdate is the body of PATCH /drives/{drive_id}.
type DriveUpdate struct {
	ID      string       `json:"drive_id" api:"required"`
	Path    string       `json:"path_on_host,omitempty"`
	Limiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// Net is the body of PUT /network-interfaces/{iface_id}.
type Net struct {
	ID      string       `json:"iface_id" api:"required"`
	HostDev string       `json:"host_dev_name" api:"required"`
	MAC     string       `json:"guest_mac,omitempty"`
	MTU     int          `json:"mtu,omitempty"`
	Receive *RateLimiter `json:"rx_rate_limiter,omitempty"`
	Send    *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// NetUpdate is the body of PATCH /network-interfaces/{iface_id}.
type NetUpdate struct {
	ID      string       `json:"iface_id" api:"required"`
	Receive *RateLimiter `json:"rx_rate_limiter,omitempty"`
	Send    *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// Vsock is the body of PUT /vsock.
type Vsock struct {
	CID  uint64 `json:"guest_cid" api:"required"`
	Path string `json:"uds_path" api:"required"`
	ID   string `json:"vsock_id,omitempty"`
}

// Entropy is the body of PUT /entropy.
type Entropy struct {
	Limiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// Balloon is the body of GET and PUT /balloon.
type Balloon struct {
	AmountMiB     uint64 `json:"amount_mib" api:"required"`
	DeflateOnOOM  bool   `json:"deflate_on_oom" api:"required"`
	StatsInterval uint64 `json:"stats_polling_interval_s"`
	Hinting       bool   `json:"free_page_hinting"`
	Reporting     bool   `json:"free_page_reporting"`
}

// BalloonUpdate is the body of PATCH /balloon.
type BalloonUpdate struct {
	AmountMiB uint64 `json:"amount_mib" api:"required"`
}

// StatisticsUpdate is the body of PATCH /balloon/statistics.
type StatisticsUpdate struct {
	StatsInterval uint64 `json:"stats_polling_interval_s" api:"required"`
}

// Action is the body of PUT /actions.
type Action struct {
	Type string `json:"action_type" api:"required"`
}

// State is the body of PATCH /vm.
type State struct {
	State string `json:"state" api:"required"`
}

// SnapshotCreate is the body of PUT /snapshot/create. The fields from Live on are
// godwit's own.
type SnapshotCreate struct {
	Path   string `json:"snapshot_path" api:"required"`
	Memory string `json:"mem_file_path,omitempty"`
	Type   string `json:"snapshot_type,omitempty"`

	Live      bool   `json:"live,omitempty"`
	Base      string `json:"base_path,omitempty"`
	WithDisks bool   `json:"with_disks,omitempty"`
	Track     bool   `json:"track_dirty_pages,omitempty"`
	Stop      bool   `json:"stop,omitempty"`
	// Report asks for an answer with what the snapshot took.
	Report bool `json:"report,omitempty"`
}

// SnapshotLoad is the body of PUT /snapshot/load. Drives is godwit's own.
type SnapshotLoad struct {
	Path          string          `json:"snapshot_path" api:"required"`
	Memory        string          `json:"mem_file_path,omitempty"`
	Backend       *Backend        `json:"mem_backend,omitempty"`
	Diff          bool            `json:"enable_diff_snapshots,omitempty"`
	TrackDirty    bool            `json:"track_dirty_pages,omitempty"`
	Resume        bool            `json:"resume_vm,omitempty"`
	Nets          []NetOverride   `json:"network_overrides,omitempty"`
	Vsock         *VsockPath      `json:"vsock_override,omitempty"`
	ClockRealtime bool            `json:"clock_realtime,omitempty"`
	Drives        []DriveOverride `json:"drive_overrides,omitempty"`
}

// DriveOverride gives a drive another file than the saved one.
type DriveOverride struct {
	ID   string `json:"drive_id" api:"required"`
	Path string `json:"path_on_host" api:"required"`
}

// Backend says where the memory of a snapshot comes from.
type Backend struct {
	Path string `json:"backend_path" api:"required"`
	Type string `json:"backend_type" api:"required"`
}

// NetOverride gives a network card another tap interface than the saved one.
type NetOverride struct {
	ID      string `json:"iface_id" api:"required"`
	HostDev string `json:"host_dev_name" api:"required"`
}

// VsockPath gives the vsock device another socket than the saved one.
type VsockPath struct {
	Path string `json:"uds_path" api:"required"`
}

// Logger is the body of PUT /logger.
type Logger struct {
	Path       string `json:"log_path,omitempty"`
	Level      string `json:"level,omitempty"`
	ShowLevel  bool   `json:"show_level"`
	ShowOrigin bool   `json:"show_log_origin"`
	Module     string `json:"module,omitempty"`
}

// Metrics is the body of PUT /metrics.
type Metrics struct {
	Path string `json:"metrics_path" api:"required"`
}

// Config is the answer of GET /vm/config, and what a configuration file has.
type Config struct {
	Balloon    *Balloon    `json:"balloon,omitempty"`
	Drives     []Drive     `json:"drives"`
	BootSource *BootSource `json:"boot-source,omitempty"`
	Logger     *Logger     `json:"logger,omitempty"`
	Machine    *Machine    `json:"machine-config,omitempty"`
	Metrics    *Metrics    `json:"metrics,omitempty"`
	Nets       []Net       `json:"network-interfaces"`
	Vsock      *Vsock      `json:"vsock,omitempty"`
	Entropy    *Entropy    `json:"entropy,omitempty"`
}

// Stats is the answer of GET /stats. Memory is in bytes.
type Stats struct {
	State   string `json:"state"`
	CPUs    int    `json:"vcpu_count"`
	Memory  uint64 `json:"memory_bytes"`
	Granted uint64 `json:"memory_granted_bytes"`
	Used    uint64 `json:"memory_used_bytes"`
	// Started is when the guest was started; zero before that.
	Started time.Time `json:"started"`
	// Uptime is in microseconds.
	Uptime int64 `json:"uptime_us"`
}

// Migration is the body of PUT /migration: where the guest is to move, and how. It is
// godwit's own, as all of /migration.
type Migration struct {
	// Address is HOST:PORT or unix:PATH.
	Address string `json:"address" api:"required"`
	// Cert, Key and CA are paths of PEM files; with none of them connections are plain.
	Cert string `json:"tls_cert,omitempty"`
	Key  string `json:"tls_key,omitempty"`
	CA   string `json:"tls_ca,omitempty"`
	// Connections for memory, 0 for the usual number.
	Connections int `json:"connections,omitempty"`
	// Bandwidth in bytes a second, 0 for no limit.
	Bandwidth uint64 `json:"bandwidth_bytes,omitempty"`
	// Downtime and Timeout in milliseconds, 0 for the usual one and for none.
	Downtime int64 `json:"downtime_ms,omitempty"`
	Timeout  int64 `json:"timeout_ms,omitempty"`
	// Compress is none, zstd or auto.
	Compress     string `json:"compress,omitempty"`
	AutoConverge bool   `json:"auto_converge,omitempty"`
	// PostCopy is never, auto or now: whether the guest may run there before all of its
	// memory is.
	PostCopy string `json:"post_copy,omitempty"`
	// WithDisks has the disks move that the guest can write.
	WithDisks bool `json:"with_disks,omitempty"`
}

// MigrationUpdate is the body of PATCH /migration.
type MigrationUpdate struct {
	// Action is cancel, run-here, give-up, or empty.
	Action string `json:"action,omitempty"`
	// Statement says, with run-here, how the other host is kept from ever running the
	// guest.
	Statement string `json:"statement,omitempty"`
	// Bandwidth in bytes a second, 0 for no limit.
	Bandwidth *uint64 `json:"bandwidth_bytes,omitempty"`
}

// MigrationStatus is the answer of GET /migration, and a line of that of PUT: the last one
// has Report or Error.
type MigrationStatus struct {
	// Address is empty if there was no migration.
	Address  string         `json:"address,omitempty"`
	Progress *live.Progress `json:"progress,omitempty"`
	Report   *live.Report   `json:"report,omitempty"`
	Error    string         `json:"error,omitempty"`
	// Missing is memory that is still at the host that this guest came from.
	Missing *MissingMemory `json:"missing,omitempty"`
}

// MissingMemory is what a guest that runs already has not got of its memory.
type MissingMemory struct {
	Bytes uint64 `json:"bytes"`
	// Reason is why none of it comes for now, empty while it comes.
	Reason string `json:"reason,omitempty"`
}
