package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/internal/flags"
	"github.com/godwit-vmm/godwit/internal/lab"
)

// hostFlags are the flags that describe a host.
type hostFlags struct {
	cpus   int
	memory flags.Size
	qemu   bool
}

func (h *hostFlags) add(f *pflag.FlagSet) {
	h.memory = 4 << 30
	f.IntVar(&h.cpus, "cpus", 1, "CPUs of each emulated host; with more than one QEMU is not quite steady")
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
		qemu, err := lab.QEMUFiles()
		if err != nil {
			return lab.Options{}, err
		}
		files = append(files, qemu...)
	}
	return lab.Options{CPUs: h.cpus, MemoryMiB: int(h.memory >> 20), Kernel: kernel, Files: files}, nil
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
