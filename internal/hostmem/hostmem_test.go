package hostmem

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEnough(t *testing.T) {
	const plenty = "MemTotal: 9000000 kB\nMemAvailable: 1048576 kB\nHugePages_Free: 3\nHugepagesize: 2048 kB\nodd\n"
	for _, test := range []struct {
		name  string
		files map[string]string
		bytes uint64
		huge  bool
		want  string
	}{
		{"nothing known", nil, 1 << 40, false, ""},
		{"enough", map[string]string{"proc/meminfo": plenty}, 512 << 20, false, ""},
		{"too little", map[string]string{"proc/meminfo": plenty}, 1 << 30, false, "1024 MiB to spare"},
		{"enough huge pages", map[string]string{"proc/meminfo": plenty}, 6 << 20, true, ""},
		{"too few huge pages", map[string]string{"proc/meminfo": plenty}, 8 << 20, true, "6 MiB free"},
		{"a limit above", map[string]string{
			"proc/meminfo": plenty, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/memory.max": "104857600\n", "sys/fs/cgroup/a/memory.current": "52428800\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "1\n",
		}, 40 << 20, false, "50 MiB to spare"},
		{"no limit", map[string]string{
			"proc/meminfo": plenty, "proc/self/cgroup": "0::/a\n",
			"sys/fs/cgroup/a/memory.max": "max\n", "sys/fs/cgroup/a/memory.current": "1\n",
		}, 40 << 20, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range test.files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := enough(root, test.bytes, test.huge)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
