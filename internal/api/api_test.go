package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/internal/vmm"
)

const (
	tooEarly = "The requested operation is not supported before starting the microVM."
	tooLate  = "The requested operation is not supported after starting the microVM."
)

// TestLife leads a guest through its life, with all that the API has.
func TestLife(t *testing.T) {
	dir := t.TempDir()
	image, kernel := filepath.Join(dir, "disk.img"), spin(t)
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := newVM(t, Defaults())
	text := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "text") })
	var metrics, flushed string
	document := parseDocument(t)
	s := New(vm, Options{
		Version: "1.2.3", Console: text, Events: text, Metrics: text,
		MetricsFile:  func(path string) error { metrics = path; return nil },
		FlushMetrics: func() error { flushed = "flushed"; return nil },
		Journal:      newJournal(t),
	})
	do := client(t, s, document)
	is := func(path, want string) {
		t.Helper()
		if got := do.must(t, "GET", path, ""); got != want {
			t.Errorf("GET %s: %s, want %s", path, got, want)
		}
	}

	is("/", `{"app_name":"godwit","id":"guest","state":"Not started","vmm_version":"1.2.3"}`)
	is("/version", `{"firecracker_version":"1.2.3"}`)
	is("/machine-config", `{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false,"huge_pages":"None"}`)
	is("/vm/config", `{"drives":[],"machine-config":{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false,"huge_pages":"None"},"network-interfaces":[],"entropy":{}}`)
	is("/console", "text")
	is("/events", "text")
	is("/metrics", "text")
	is("/openapi.yaml", strings.TrimSpace(string(Document)))
	do.must(t, "GET", "/stats", "")

	logged := filepath.Join(dir, "log")
	do.must(t, "PUT", "/logger", fmt.Sprintf(`{"log_path": %q, "level": "debug", "show_level": true, "show_log_origin": true}`, logged))
	do.must(t, "PUT", "/metrics", fmt.Sprintf(`{"metrics_path": %q}`, dir+"/metrics"))
	do.must(t, "PUT", "/boot-source", fmt.Sprintf(`{"kernel_image_path": %q, "boot_args": "console=ttyS0 pci=off reboot=k"}`, kernel))
	do.must(t, "PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 32, "huge_pages": "None", "smt": false}`)
	do.must(t, "PATCH", "/machine-config", `{"mem_size_mib": 64}`)
	is("/machine-config", `{"vcpu_count":2,"mem_size_mib":64,"smt":false,"track_dirty_pages":false,"huge_pages":"None"}`)
	drive := `{"drive_id": %q, "path_on_host": %q, "is_root_device": %v, "is_read_only": true, "cache_type": "Unsafe", "io_engine": "Async",
		"rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": 500, "refill_time": 100}, "ops": {"size": 3, "refill_time": 1000}}}`
	do.must(t, "PUT", "/drives/data", fmt.Sprintf(drive, "data", image, false))
	do.must(t, "PUT", "/drives/root", fmt.Sprintf(drive, "root", image, true))
	do.must(t, "PUT", "/drives/data", fmt.Sprintf(drive, "data", image, false))
	do.must(t, "PUT", "/vsock", fmt.Sprintf(`{"guest_cid": 3, "uds_path": %q}`, dir+"/v"))
	do.must(t, "PUT", "/entropy", `{}`)
	do.must(t, "PUT", "/balloon", `{"amount_mib": 4, "deflate_on_oom": true, "stats_polling_interval_s": 1}`)
	is("/balloon", `{"amount_mib":4,"deflate_on_oom":true,"stats_polling_interval_s":1,"free_page_hinting":false,"free_page_reporting":false}`)

	do.must(t, "PUT", "/actions", `{"action_type": "InstanceStart"}`)
	is("/", `{"app_name":"godwit","id":"guest","state":"Running","vmm_version":"1.2.3"}`)
	do.must(t, "PATCH", "/vm", `{"state": "Paused"}`)
	do.must(t, "PATCH", "/vm", `{"state": "Paused"}`)
	is("/", `{"app_name":"godwit","id":"guest","state":"Paused","vmm_version":"1.2.3"}`)
	do.must(t, "PATCH", "/vm", `{"state": "Resumed"}`)
	do.must(t, "PATCH", "/balloon", `{"amount_mib": 8}`)
	is("/balloon", `{"amount_mib":8,"deflate_on_oom":true,"stats_polling_interval_s":1,"free_page_hinting":false,"free_page_reporting":false}`)
	do.must(t, "PATCH", "/balloon/statistics", `{"stats_polling_interval_s": 2}`)
	var stats balloon.Stats
	if err := json.Unmarshal([]byte(do.must(t, "GET", "/balloon/statistics", "")), &stats); err != nil || stats.TargetMiB != 8 {
		t.Errorf("statistics %+v, %v", stats, err)
	}
	if err := os.Truncate(image, 4<<20); err != nil {
		t.Fatal(err)
	}
	do.must(t, "PATCH", "/drives/root", `{"drive_id": "root"}`)
	do.must(t, "PATCH", "/drives/data", fmt.Sprintf(`{"drive_id": "data", "path_on_host": %q}`, image))
	if got := vm.Machine().Disks()[1].Capacity(); got != 4<<20 {
		t.Errorf("the disk has %d bytes", got)
	}
	var c Config
	if err := json.Unmarshal([]byte(do.must(t, "GET", "/vm/config", "")), &c); err != nil {
		t.Fatal(err)
	}
	if got := *c.BootSource.BootArgs; got != "console=ttyS0 reboot=k" {
		t.Errorf("boot_args %q", got)
	}
	want := TokenBucket{Size: 1000, OneTimeBurst: 500, RefillTime: 100}
	if len(c.Drives) != 2 || c.Drives[0].ID != "root" || *c.Drives[0].Limiter.Bandwidth != want || c.Metrics.Path != metrics {
		t.Errorf("configuration %+v", c)
	}
	var how Stats
	if err := json.Unmarshal([]byte(do.must(t, "GET", "/stats", "")), &how); err != nil || how.State != "Running" || how.Memory != 64<<20 || how.Used == 0 || how.Uptime <= 0 {
		t.Errorf("stats %+v, %v", how, err)
	}
	do.must(t, "PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`)
	if do.must(t, "PUT", "/actions", `{"action_type": "FlushMetrics"}`); flushed == "" {
		t.Error("the metrics were not flushed")
	}
	there := newReceiver(t)
	there.request.Vsock = dir + "/there"
	do.migrates(t, vm, there)
	s.Event(vmm.Event{Kind: vmm.EventTrouble, Err: errors.New("trouble of a disk")})
	content, err := os.ReadFile(logged)
	for _, want := range []string{"pci=off is left out", "path=/actions", "level=INFO", "source=", "trouble of a disk"} {
		if err != nil || !strings.Contains(string(content), want) {
			t.Errorf("%v: no %q in the log:\n%s", err, want, content)
		}
	}
	checkCoverage(t, document)
}

// checkCoverage checks that a test has seen every operation succeed, but for those that
// have their own.
func checkCoverage(t *testing.T, d *document) {
	t.Helper()
	for path, item := range d.at(d.root, "paths") {
		for method := range item.(map[string]any) {
			at := strings.ToUpper(method) + " " + path
			if method == "parameters" || strings.Contains(at, "/snapshot/") || strings.Contains(at, "/network-interfaces/") {
				continue
			}
			if !d.seen[at+" 200"] && !d.seen[at+" 204"] {
				t.Errorf("%s has not succeeded", at)
			}
		}
	}
}

// TestPhases asks for everything too early and too late.
func TestPhases(t *testing.T) {
	late, _ := started(t, func(c *vmm.Config) { c.Balloon = &balloon.Config{} })
	d := parseDocument(t)
	early := client(t, New(newVM(t, Defaults()), Options{MetricsFile: func(string) error { return nil }}), d)
	kernel := spin(t)
	for _, r := range []struct{ method, path, body string }{
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64}`},
		{"PATCH", "/machine-config", `{"vcpu_count": 1}`},
		{"PUT", "/boot-source", fmt.Sprintf(`{"kernel_image_path": %q}`, kernel)},
		{"PUT", "/drives/a", fmt.Sprintf(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false}`, kernel)},
		{"PUT", "/network-interfaces/a", `{"iface_id": "a", "host_dev_name": "tap0"}`},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "v"}`},
		{"PUT", "/entropy", `{}`},
		{"PUT", "/balloon", `{"amount_mib": 0, "deflate_on_oom": false}`},
		{"PUT", "/logger", `{"level": "Off"}`},
		{"PUT", "/metrics", `{"metrics_path": "m"}`},
		{"PUT", "/snapshot/load", `{"snapshot_path": "/none", "mem_backend": {"backend_type": "File", "backend_path": "/none/memory"}}`},
	} {
		late.refused(t, r.method, r.path, r.body, tooLate)
		if r.path != "/snapshot/load" {
			early.must(t, r.method, r.path, r.body)
		}
	}
	early.refused(t, "PUT", "/snapshot/load", `{"snapshot_path": "/none", "mem_file_path": "/none/memory"}`,
		"Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")
	late.refused(t, "PUT", "/actions", `{"action_type": "InstanceStart"}`, tooLate)
	for _, r := range []struct{ method, path, body string }{
		{"PATCH", "/vm", `{"state": "Paused"}`},
		{"PATCH", "/vm", `{"state": "Resumed"}`},
		{"PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`},
		{"PUT", "/actions", `{"action_type": "FlushMetrics"}`},
		{"PATCH", "/drives/a", `{"drive_id": "a"}`},
		{"PATCH", "/network-interfaces/a", `{"iface_id": "a"}`},
		{"PATCH", "/balloon", `{"amount_mib": 0}`},
		{"GET", "/balloon/statistics", ""},
		{"PATCH", "/balloon/statistics", `{"stats_polling_interval_s": 1}`},
		{"PUT", "/snapshot/create", `{"snapshot_path": "/none", "mem_file_path": "/none/memory"}`},
	} {
		early.refused(t, r.method, r.path, r.body, tooEarly)
	}
	late.refused(t, "PUT", "/snapshot/create", `{"snapshot_path": "/none"}`, "pause it before")
}

// TestRefusals has what clients get wrong.
func TestRefusals(t *testing.T) {
	early := client(t, New(newVM(t, Defaults()), Options{}), parseDocument(t))
	late, _ := started(t, func(c *vmm.Config) { c.Balloon = &balloon.Config{} })
	bare, _ := started(t, func(c *vmm.Config) { c.Nets = []vmm.Net{} })
	kernel := spin(t)
	file := func(format string) string { return fmt.Sprintf(format, kernel) }
	pipe := filepath.Join(t.TempDir(), "folder")
	if err := os.Mkdir(pipe, 0o700); err != nil {
		t.Fatal(err)
	}
	early.must(t, "PUT", "/drives/root", file(`{"drive_id": "root", "path_on_host": %q, "is_root_device": true}`))
	early.must(t, "PUT", "/network-interfaces/a", `{"iface_id": "a", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02"}`)
	for _, test := range []struct {
		do                 do
		method, path, body string
		want               string
	}{
		{early, "PUT", "/actions", `nonsense`, "An error occurred when deserializing the json body of a request: invalid character"},
		{early, "PUT", "/actions", ``, "Empty PUT request."},
		{early, "PUT", "/actions", `null`, "null where an object is wanted"},
		{early, "PUT", "/actions", `[]`, "the body wants an object"},
		{early, "PUT", "/actions", `{}`, "missing field `action_type`"},
		{early, "PUT", "/actions", `{"action_type": "Dance"}`, "want InstanceStart"},
		{early, "PUT", "/actions", `{"action_type": 1}`, "number where `action_type` wants a string"},
		{early, "PUT", "/actions", `{"action_type": "InstanceStart", "x": 1}`, "unknown field"},
		{early, "PUT", "/actions", `{"ACTION_TYPE": "InstanceStart"}`, "unknown field `ACTION_TYPE`"},
		{early, "PUT", "/actions", `{"action_type": "FlushMetrics", "action_type": "InstanceStart"}`, "duplicate field"},
		{early, "PUT", "/actions", `{"action_type": "InstanceStart"} {}`, "behind the object"},
		{early, "PUT", "/actions", `{"action_type": "InstanceStart"`, "EOF"},
		{early, "PUT", "/actions", `{"action_type": ` + strings.Repeat("[", 1000), "deep"},
		{early, "PUT", "/actions", `{"action_type": "` + strings.Repeat("9", maxBody) + `"}`, "larger than 65536 bytes"},
		{early, "PUT", "/actions", `{"action_type": "InstanceStart"}`, "Start microvm error: Cannot start microvm without kernel configuration."},
		{early, "GET", "/version", `{}`, "GET request cannot have a body."},
		{early, "DELETE", "/vm", "", "Invalid request method and/or path: DELETE /vm."},
		{early, "GET", "/nothing", "", "Invalid request method and/or path: GET /nothing."},
		{early, "GET", "//version", "", "Invalid request"},
		{early, "GET", "/../version", "", "Invalid request"},
		{early, "GET", "/console", "", "Invalid request"},
		{early, "PUT", "/mmds", `{}`, "metadata"},
		{early, "PUT", "/mmds/config", `{}`, "metadata"},
		{early, "PUT", "/cpu-config", `{}`, "CPU templates"},
		{early, "PUT", "/pmem/a", `{}`, "drive"},
		{early, "PUT", "/hotplug/memory", `{}`, "balloon"},
		{early, "PUT", "/serial", `{}`, "standard output"},
		{early, "PATCH", "/balloon/hinting/start", `{}`, "free_page_reporting"},

		{early, "PUT", "/machine-config", `{"vcpu_count": 1}`, "missing field `mem_size_mib`"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 0, "mem_size_mib": 64}`, "want 1 to 64"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 65, "mem_size_mib": 64}`, "want 1 to 64"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 1.5, "mem_size_mib": 64}`, "whole number"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 0}`, "memory"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": -1}`, "whole number from 0"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 18446744073709551615}`, "more than any guest"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 63, "huge_pages": "2M"}`, "whole 2 MiB pages"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "1G"}`, "huge_pages"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "smt": true}`, "hyperthreads"},
		{early, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}`, "CPU templates"},
		{early, "PATCH", "/machine-config", `{}`, "Empty PATCH request."},

		{early, "PUT", "/boot-source", `{"kernel_image_path": "/no/such"}`, "Boot source error: kernel_image_path"},
		{early, "PUT", "/boot-source", fmt.Sprintf(`{"kernel_image_path": %q}`, pipe), "is not a file"},
		{early, "PUT", "/boot-source", file(`{"kernel_image_path": %q, "initrd_path": "/no/such"}`), "initrd_path"},
		{early, "PUT", "/boot-source", file(`{"kernel_image_path": %q, "boot_args": "a\nb"}`), "one line"},

		{early, "PUT", "/drives/a", file(`{"drive_id": "b", "path_on_host": %q, "is_root_device": false}`), "does not match the id from the body [b]!"},
		{early, "PUT", "/drives/", file(`{"drive_id": "", "path_on_host": %q, "is_root_device": false}`), "The ID cannot be empty."},
		{early, "PUT", "/drives/a-b", file(`{"drive_id": "a-b", "path_on_host": %q, "is_root_device": false}`), "alphanumeric"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": true}`), "A root block device already exists!"},
		{early, "PUT", "/drives/a", `{"drive_id": "a", "is_root_device": false}`, "missing field `path_on_host`"},
		{early, "PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "/no/such", "is_root_device": false}`, "no such file"},
		{early, "PUT", "/drives/a", `{"drive_id": "a", "path_on_host": null, "is_root_device": null}`, "missing field `is_root_device`"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false, "cache_type": "None"}`), "cache_type"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false, "io_engine": "None"}`), "io_engine"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false, "partuuid": "a b"}`), "partuuid"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false, "socket": "s"}`), "vhost-user"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false, "rate_limiter": {"ops": {"size": 1}}}`), "missing field `refill_time`"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false, "rate_limiter": {"ops": {"size": 1, "refill_time": 5000}}}`), "at least one a second"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false, "rate_limiter": {"ops": {"size": 18446744073709551615, "refill_time": 1}}}`), "at most"},
		{early, "PUT", "/drives/a", file(`{"drive_id": "a", "path_on_host": %q, "is_root_device": false, "rate_limiter": {"ops": {"size": 1125899906842624, "refill_time": 1}}}`), "at most"},

		{early, "PUT", "/network-interfaces/b", `{"iface_id": "b", "host_dev_name": "a name that is too long"}`, "no name"},
		{early, "PUT", "/network-interfaces/b", `{"iface_id": "b", "host_dev_name": "tap0"}`, "that of a already"},
		{early, "PUT", "/network-interfaces/b", `{"iface_id": "b", "host_dev_name": "tap1", "guest_mac": "06:00:ac:10:00:02"}`, "that of a already"},
		{early, "PUT", "/network-interfaces/b", `{"iface_id": "b", "host_dev_name": "tap1", "guest_mac": "06"}`, "guest_mac"},
		{early, "PUT", "/network-interfaces/b", `{"iface_id": "b", "host_dev_name": "tap1", "mtu": 5}`, "mtu"},
		{early, "PUT", "/vsock", `{"guest_cid": 2, "uds_path": "v"}`, "guest_cid 2"},
		{early, "PUT", "/vsock", `{"guest_cid": 3, "uds_path": ""}`, "uds_path"},
		{early, "PUT", "/entropy", `{"rate_limiter": {}}`, "rate_limiter"},
		{early, "GET", "/balloon", ``, "no balloon"},
		{early, "PUT", "/balloon", `{"amount_mib": 129, "deflate_on_oom": false}`, "the guest has 128"},
		{early, "PUT", "/balloon", `{"amount_mib": 1}`, "missing field `deflate_on_oom`"},
		{early, "PUT", "/balloon", `{"amount_mib": 1, "deflate_on_oom": true, "free_page_hinting": true}`, "free_page_reporting"},
		{early, "PUT", "/balloon", `{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 65537}`, "at most"},
		{early, "PUT", "/logger", `{"level": "Loud"}`, "Logger error: level"},
		{early, "PUT", "/logger", `{"module": "x"}`, "module"},
		{early, "PUT", "/logger", `{"log_path": "/no/such/log"}`, "no such file"},
		{early, "PUT", "/metrics", `{"metrics_path": "/tmp/x"}`, "GET /metrics"},
		{early, "PUT", "/snapshot/load", `{"snapshot_path": "/x", "mem_file_path": "/x/memory", "mem_backend": {"backend_type": "File", "backend_path": "/x/memory"}}`, "too many fields"},
		{early, "PUT", "/snapshot/load", `{"snapshot_path": "/x", "mem_backend": {"backend_type": "Tape", "backend_path": "/x"}}`, "File or Uffd"},
		{early, "PUT", "/snapshot/load", `{"snapshot_path": "/x", "mem_file_path": "/y"}`, "one folder"},

		{late, "PATCH", "/vm", `{"state": "Dancing"}`, "want Paused or Resumed"},
		{late, "PATCH", "/balloon", `{"amount_mib": 64}`, "more than it has"},
		{late, "PATCH", "/balloon", `{"amount_mib": 18446744073709551615}`, "more than any guest has"},
		{late, "PATCH", "/balloon/statistics", `{"stats_polling_interval_s": 65537}`, "at most"},
		{late, "PUT", "/actions", `{"action_type": "FlushMetrics"}`, "GET /metrics"},
		{late, "PUT", "/snapshot/create", `{"snapshot_path": "/x", "snapshot_type": "Half"}`, "Full or Diff"},
		{late, "PUT", "/snapshot/create", `{"snapshot_path": "/x", "base_path": "/y"}`, "Diff"},
		{bare, "PATCH", "/balloon", `{"amount_mib": 1}`, "no balloon"},
		{bare, "GET", "/balloon/statistics", ``, "no balloon"},
		{bare, "PATCH", "/drives/0", `{"drive_id": "0"}`, "no drive"},
		{bare, "PATCH", "/network-interfaces/0", `{"iface_id": "0"}`, "no network interface"},
	} {
		test.do.refused(t, test.method, test.path, test.body, test.want)
	}
}

func TestChangesOfRunningDevices(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	do, vm := started(t, func(c *vmm.Config) {
		c.Drives = []vmm.Drive{{ID: "0", Config: blk.Config{Path: image}}}
	})
	do.refused(t, "PATCH", "/drives/0", `{"drive_id": "1"}`, "does not match")
	do.refused(t, "PATCH", "/drives/0", `{"drive_id": "0", "path_on_host": "/other"}`, "keeps its file")
	do.refused(t, "PATCH", "/drives/1", `{"drive_id": "1", "rate_limiter": {}}`, "no drive")
	do.refused(t, "PATCH", "/drives/0", `{"drive_id": "0", "rate_limiter": {"ops": {"size": 1, "refill_time": 5000}}}`, "at least one a second")
	change := func(body string, want limit.Config) {
		t.Helper()
		do.must(t, "PATCH", "/drives/0", `{"drive_id": "0", "rate_limiter": `+body+`}`)
		if got := vm.Config().Drives[0].Limit; got != want {
			t.Errorf("%s: the limits are %+v, want %+v", body, got, want)
		}
	}
	ops, bytes := limit.Rate{PerSecond: 100, Burst: 10}, limit.Rate{PerSecond: 1 << 20, Burst: 1 << 20}
	change(`{"ops": {"size": 10, "refill_time": 100}}`, limit.Config{Operations: ops})
	change(`{"bandwidth": {"size": 1048576, "refill_time": 1000}}`, limit.Config{Operations: ops, Bandwidth: bytes})
	change(`{}`, limit.Config{Operations: ops, Bandwidth: bytes})
	change(`{"ops": {"size": 0, "refill_time": 0}}`, limit.Config{Bandwidth: bytes})
	if err := os.Truncate(image, 1000); err != nil {
		t.Fatal(err)
	}
	do.refused(t, "PATCH", "/drives/0", `{"drive_id": "0"}`, image)
}

// TestMany has many clients at once lead a guest up and down.
func TestMany(t *testing.T) {
	do, _ := started(t, func(c *vmm.Config) { c.Balloon = &balloon.Config{} })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				for _, r := range [][3]string{
					{"PATCH", "/vm", `{"state": "Paused"}`}, {"GET", "/vm/config", ""}, {"GET", "/stats", ""},
					{"PATCH", "/balloon", `{"amount_mib": 1}`}, {"PATCH", "/vm", `{"state": "Resumed"}`}, {"GET", "/", ""},
				} {
					if status, answer := do(r[0], r[1], r[2]); status >= 400 {
						t.Errorf("%v: %s", r, answer)
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestLogger changes the level of a log.
func TestLogger(t *testing.T) {
	vm := vmm.New(t.Context(), vmm.Options{}, Defaults())
	s := New(vm, Options{})
	do := client(t, s, parseDocument(t))
	path := filepath.Join(t.TempDir(), "log")
	do.must(t, "PUT", "/logger", fmt.Sprintf(`{"log_path": %q, "level": "error"}`, path))
	do.must(t, "GET", "/version", "")
	do.must(t, "PUT", "/logger", `{"level": "Info"}`)
	do.must(t, "GET", "/machine-config", "")
	do.must(t, "PUT", "/logger", `{"level": "Off"}`)
	do.must(t, "GET", "/vm/config", "")
	content, err := os.ReadFile(path)
	for what, want := range map[string]bool{"/version": false, "path=/machine-config": true, "path=/vm/config": false, "level=": false} {
		if err != nil || strings.Contains(string(content), what) != want {
			t.Errorf("%v: %q is %v in\n%s", err, what, !want, content)
		}
	}
	for range 10 {
		s.Event(vmm.Event{Kind: vmm.EventTrouble, Err: errors.New("too late")})
	}
}

// TestFile configures guests by files.
func TestFile(t *testing.T) {
	kernel := spin(t)
	for _, tt := range []struct{ name, file, want string }{
		{"all", `{"boot-source": {"kernel_image_path": %q}, "drives": [], "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
			"network-interfaces": [{"iface_id": "net1", "host_dev_name": "tap0"}], "vsock": {"guest_cid": 3, "uds_path": "v"},
			"balloon": {"amount_mib": 64, "deflate_on_oom": true}, "entropy": {}, "logger": {}, "cpu-config": null, "mmds-config": null, "pmem": []}`, ""},
		{"nothing", `{}`, ""},
		{"no JSON", `{`, "EOF"},
		{"null drive", `{"drives": [null]}`, "null where an object is wanted"},
		{"unknown", `{"driver": []}`, "unknown field"},
		{"missing", `{"drives": [{"drive_id": "x"}]}`, "missing field `is_root_device`"},
		{"templates", `{"cpu-config": "x.json"}`, "cpu-config: godwit has no CPU templates"},
		{"wrong", `{"machine-config": {"vcpu_count": 200, "mem_size_mib": 64}}`, "want 1 to 64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vm := vmm.New(t.Context(), vmm.Options{}, Defaults())
			text := strings.ReplaceAll(tt.file, "%q", fmt.Sprintf("%q", kernel))
			err := New(vm, Options{}).Configure([]byte(text))
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if c := vm.Config(); tt.name == "all" && (c.CPUs != 2 || c.Cmdline != DefaultBootArgs || len(c.Nets) != 1 || c.Balloon.Target != 64<<20) {
				t.Errorf("%+v", c)
			}
		})
	}
}
