package lab

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// QEMUFiles are the files with which QEMU runs in a host, on the host's own
// KVM: the program of this machine, the libraries it is linked with, and its
// firmware. They are large (about 60 MB): a host with them takes longer to
// start.
func QEMUFiles() ([]File, error) {
	program, err := exec.LookPath(emulator)
	if err != nil {
		return nil, fmt.Errorf("%s is not installed: install it (Debian, Ubuntu: apt-get install qemu-system-x86)", emulator)
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("libraries of %s: ldd: %w", program, err)
	}
	files := []File{{To: program, From: program}}
	for _, library := range parseLDD(string(out)) {
		files = append(files, File{To: library, From: library})
	}
	for _, dir := range []string{"/usr/share/qemu", "/usr/share/seabios"} {
		firmware, err := firmwareIn(dir)
		if err != nil {
			return nil, fmt.Errorf("firmware of %s: %w", program, err)
		}
		files = append(files, firmware...)
	}
	return files, nil
}

// parseLDD gives the paths in the output of ldd(1): those behind an arrow, and
// the dynamic loader, which stands alone.
func parseLDD(out string) []string {
	var paths []string
	for line := range strings.Lines(out) {
		if _, target, ok := strings.Cut(line, "=>"); ok {
			line = target
		}
		if path := strings.Fields(line); len(path) > 0 && strings.HasPrefix(path[0], "/") {
			paths = append(paths, path[0])
		}
	}
	return paths
}

// maxFirmware leaves out the large images, which are for other architectures
// and for EFI.
const maxFirmware = 1 << 20

// firmwareIn are the ROM images in a folder, with their names as links are.
func firmwareIn(dir string) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if ext != ".bin" && ext != ".rom" {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeType == 0 && info.Size() <= maxFirmware {
			files = append(files, File{To: path, From: path})
		}
	}
	return files, nil
}
