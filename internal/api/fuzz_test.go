package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/vmm"
)

// FuzzRequest sends requests to a server whose guest is not started. Whatever they are,
// the answer is one of the document's, and a configuration that was taken can be shown.
func FuzzRequest(f *testing.F) {
	for _, r := range [][3]string{
		{"GET", "/", ""}, {"GET", "/vm/config", ""}, {"GET", "/balloon", ""}, {"PUT", "/actions", `{"action_type": "InstanceStart"}`},
		{"PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 64, "huge_pages": "2M"}`},
		{"PATCH", "/machine-config", `{"vcpu_count": 2}`},
		{"PUT", "/boot-source", `{"kernel_image_path": "/dev/null", "boot_args": "pci=off"}`},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "/dev/null", "is_root_device": true, "rate_limiter": {"ops": {"size": 1, "refill_time": 3}}}`},
		{"PUT", "/network-interfaces/n", `{"iface_id": "n", "host_dev_name": "tap0", "guest_mac": "06:00:ac:10:00:02", "rx_rate_limiter": {}}`},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "v"}`}, {"PUT", "/balloon", `{"amount_mib": 1, "deflate_on_oom": true}`},
		{"PUT", "/snapshot/load", `{"snapshot_path": "/", "network_overrides": [{"iface_id": "a", "host_dev_name": "b"}]}`},
		{"PUT", "/logger", `{"level": "Off"}`},
	} {
		f.Add(r[0], r[1], r[2])
	}
	f.Fuzz(func(t *testing.T, method, path, body string) {
		r, err := http.NewRequest(method, "http://godwit/", strings.NewReader(body))
		var log Logger
		if _ = json.Unmarshal([]byte(body), &log); err != nil || log.Path != "" {
			return // it would write where it wants
		}
		r.URL.Path = path
		vm := vmm.New(t.Context(), vmm.Options{}, Defaults())
		defer vm.Kill(nil)
		h := New(vm, Options{}).handler()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var fault Fault
		switch w.Code {
		case 200:
		case 204:
			if w.Body.Len() > 0 {
				t.Errorf("204 with %s", w.Body)
			}
		case 400:
			if err := json.Unmarshal(w.Body.Bytes(), &fault); err != nil || fault.Message == "" {
				t.Errorf("400 with %s", w.Body)
			}
		default:
			t.Errorf("status %d", w.Code)
		}
		shown := httptest.NewRecorder()
		h.ServeHTTP(shown, httptest.NewRequest("GET", "/vm/config", nil))
		if err := New(vm, Options{}).Configure(shown.Body.Bytes()); err != nil {
			t.Errorf("what was taken is refused in a file: %v: %s", err, shown.Body)
		}
	})
}
