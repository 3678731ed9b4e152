package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/internal/flags"
)

// diskHelp is what --disk and --root take.
const diskHelp = "`PATH[,ro][,direct][,overlay=FILE][,ephemeral][,serial=S][,queues=N][,bandwidth=SIZE][,iops=N]`"

// diskFlag is a flag that may be given several times; each value adds a disk. It
// is a pflag.Value.
type diskFlag struct{ disks *[]blk.Config }

// Set parses one disk.
func (f diskFlag) Set(text string) error {
	d, err := parseDisk(text)
	if err == nil {
		*f.disks = append(*f.disks, d)
	}
	return err
}

// String is empty: there is no default.
func (f diskFlag) String() string { return "" }

// Type is what help calls the value.
func (f diskFlag) Type() string { return "DISK" }

func parseDisk(text string) (blk.Config, error) {
	path, options, _ := strings.Cut(text, ",")
	d := blk.Config{Path: path}
	if path == "" {
		return d, fmt.Errorf("%q names no file: want %s", text, strings.Trim(diskHelp, "`"))
	}
	for option := range strings.SplitSeq(options, ",") {
		name, value, hasValue := strings.Cut(option, "=")
		if err := setDiskOption(&d, name, value, hasValue); err != nil {
			return d, err
		}
	}
	return d, nil
}

func setDiskOption(d *blk.Config, name, value string, hasValue bool) (err error) {
	switch {
	case name == "" && !hasValue:
	case name == "ro" && !hasValue:
		d.ReadOnly = true
	case name == "direct" && !hasValue:
		d.Direct = true
	case name == "overlay" && hasValue:
		d.Overlay = value
	case name == "ephemeral" && (!hasValue || value != ""):
		d.Scratch = blk.NewScratch(value)
	case name == "serial" && hasValue:
		d.Serial = value
	case name == "queues" && hasValue:
		// The device says what is too many.
		if d.Queues, err = strconv.Atoi(value); err != nil || d.Queues < 1 {
			return fmt.Errorf("queues=%s: want a number from 1", value)
		}
	case name == "bandwidth" && hasValue:
		var size flags.Size
		if err := size.Set(value); err != nil {
			return fmt.Errorf("bandwidth, in bytes a second: %w", err)
		}
		d.Limit.Bandwidth = limit.Rate{PerSecond: uint64(size)}
	case name == "iops" && hasValue:
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || n == 0 {
			return fmt.Errorf("iops=%s: want a number of requests a second", value)
		}
		d.Limit.Operations = limit.Rate{PerSecond: n}
	default:
		return fmt.Errorf("unknown disk option %q: want ro, direct, overlay=FILE, ephemeral[=FOLDER], serial=S, queues=N, bandwidth=SIZE or iops=N", name)
	}
	return nil
}
