// Package hostmem tells whether this host has room for a guest.
package hostmem

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// slack is what a VMM takes up beside its guest's memory, in bytes.
const slack = 32 << 20

// Enough says what is missing for a guest that takes up so many bytes of memory, of the
// pool of huge pages if huge. What this host does not tell is taken to be enough.
func Enough(bytes uint64, huge bool) error { return enough("/", bytes, huge) }

func enough(root string, bytes uint64, huge bool) error {
	info, err := meminfo(filepath.Join(root, "proc/meminfo"))
	if err != nil {
		return nil
	}
	if huge {
		free := info["HugePages_Free"] * info["Hugepagesize"]
		if free < bytes {
			return fmt.Errorf("the guest needs %d MiB of huge pages, and this host has %d MiB free: raise vm.nr_hugepages", bytes>>20, free>>20)
		}
		return nil
	}
	if free, ok := info["MemAvailable"]; ok && free < bytes+slack {
		return fmt.Errorf("the guest takes up %d MiB of memory, and this host has %d MiB to spare: free some", bytes>>20, free>>20)
	}
	if free, ok := groupFree(root); ok && free < bytes+slack {
		return fmt.Errorf("the guest takes up %d MiB of memory, and this process's control group has %d MiB to spare: raise memory.max", bytes>>20, free>>20)
	}
	return nil
}

// meminfo reads /proc/meminfo (proc(5)), with kB as bytes.
func meminfo(path string) (map[string]uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info := make(map[string]uint64)
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, ok := strings.Cut(s.Text(), ":")
		fields := strings.Fields(value)
		if !ok || len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			continue
		}
		if len(fields) > 1 && fields[1] == "kB" {
			n <<= 10
		}
		info[name] = n
	}
	return info, nil
}

// groupFree is what the memory controllers of this process's control group, and of those
// above, leave (cgroups(7), version 2).
func groupFree(root string) (free uint64, ok bool) {
	text, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0, false
	}
	_, group, found := strings.Cut(strings.TrimSpace(string(text)), "0::")
	if !found {
		return 0, false
	}
	for dir := filepath.Clean("/" + group); ; dir = filepath.Dir(dir) {
		at := filepath.Join(root, "sys/fs/cgroup", dir)
		most, errMost := number(filepath.Join(at, "memory.max"))
		now, errNow := number(filepath.Join(at, "memory.current"))
		if errMost == nil && errNow == nil {
			left := most - min(most, now)
			if !ok || left < free {
				free, ok = left, true
			}
		}
		if dir == "/" {
			return free, ok
		}
	}
}

// number reads a file with a number; "max" is an error.
func number(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
