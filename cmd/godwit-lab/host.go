package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/internal/bench"
	"github.com/godwit-vmm/godwit/internal/lab"
)

// hostFlags are the flags that describe a host.
type hostFlags struct {
	cpus   int
	memory mebibytes
	qemu   bool
}

func (h *hostFlags) add(f *pflag.FlagSet) {
	h.memory = 4096
	f.IntVar(&h.cpus, "cpus", 2, "CPUs of each emulated host")
	f.Var(&h.memory, "memory", "memory of each emulated host, used only as far as it is touched")
	f.BoolVar(&h.qemu, "with-qemu", false, "put this machine's QEMU into the hosts, for benchmarks against it")
}

// options are those of a host with godwit and what its guests boot from.
func (h *hostFlags) options() (lab.Options, error) {
	kernel, err := guest.CachedKernel()
	if err != nil {
		return lab.Options{}, err
	}
	program, err := godwit()
	if err != nil {
		return lab.Options{}, err
	}
	files, err := lab.GodwitFiles(program, kernel)
	if err != nil {
		return lab.Options{}, err
	}
	if h.qemu {
		qemu, err := bench.QEMUFiles()
		if err != nil {
			return lab.Options{}, err
		}
		for _, f := range qemu {
			files = append(files, lab.File{To: f.Path, From: f.Source})
		}
	}
	return lab.Options{CPUs: h.cpus, MemoryMiB: int(h.memory), Kernel: kernel, Files: files}, nil
}

// godwit is the program to put into hosts: $GODWIT, or the one beside this
// program.
func godwit() (string, error) {
	if program := os.Getenv("GODWIT"); program != "" {
		return program, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find godwit: %w: set GODWIT to its path", err)
	}
	program := filepath.Join(filepath.Dir(self), "godwit")
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("no godwit beside godwit-lab (%w): run make, or set GODWIT to its path", err)
	}
	return program, nil
}

// mebibytes is a flag for an amount of memory: a number with M or G.
type mebibytes int

// Set parses what the user gave.
func (m *mebibytes) Set(text string) error {
	unit := 1
	number := strings.TrimSuffix(strings.ToUpper(text), "M")
	if n, ok := strings.CutSuffix(strings.ToUpper(text), "G"); ok {
		number, unit = n, 1024
	}
	n, err := strconv.Atoi(number)
	if err != nil || n <= 0 || n > 1<<20 {
		return errors.New("want a size such as 512M or 4G")
	}
	*m = mebibytes(n * unit)
	return nil
}

// String is the size as the user would give it.
func (m *mebibytes) String() string {
	if *m != 0 && *m%1024 == 0 {
		return fmt.Sprintf("%dG", *m/1024)
	}
	return fmt.Sprintf("%dM", *m)
}

// Type is what help calls the value.
func (m *mebibytes) Type() string { return "SIZE" }
