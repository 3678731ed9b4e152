package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// File is a file that another machine needs at the same place.
type File struct {
	// Path is where it must be.
	Path string
	// Source is the file to copy, with all symbolic links resolved.
	Source string
}

// QEMUFiles lists what a machine without QEMU needs to run this one's: binary,
// libraries, loader and firmware.
func QEMUFiles() ([]File, error) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, fmt.Errorf("qemu-system-x86_64 is not installed: install the package qemu-system-x86")
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: ldd: %w", path, err)
	}
	paths := append([]string{path}, lddPaths(out)...)
	// What q35 and microvm look for when they boot a kernel on KVM.
	for _, name := range []string{"bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin"} {
		file, err := findFirmware(name)
		if err != nil {
			return nil, err
		}
		paths = append(paths, file)
	}
	var files []File
	for _, p := range paths {
		source, err := filepath.EvalSymlinks(p)
		if err != nil {
			return nil, fmt.Errorf("files of QEMU: %w", err)
		}
		files = append(files, File{Path: p, Source: source})
	}
	return files, nil
}

// lddPaths takes the paths out of what ldd prints:
//
//	libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f...)
//	/lib64/ld-linux-x86-64.so.2 (0x00007f...)
//	linux-vdso.so.1 (0x00007f...)
func lddPaths(out []byte) []string {
	var paths []string
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		for _, word := range strings.Fields(s.Text()) {
			if strings.HasPrefix(word, "/") {
				paths = append(paths, word)
				break
			}
		}
	}
	return paths
}

// findFirmware looks where Debian and Ubuntu put firmware.
func findFirmware(name string) (string, error) {
	dirs := []string{"/usr/share/qemu", "/usr/share/seabios"}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("QEMU's firmware %s is in none of %s: install the packages qemu-system-data and seabios", name, strings.Join(dirs, ", "))
}
