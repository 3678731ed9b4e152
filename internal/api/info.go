package api

import (
	"math"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/internal/netflag"
	"github.com/godwit-vmm/godwit/internal/vmm"
)

func (s *Server) getInfo(*request) (any, error) {
	return Info{AppName: "godwit", ID: s.vm.Name(), State: s.vm.Phase().String(), Version: s.o.Version}, nil
}

func (s *Server) getVersion(*request) (any, error) { return Version{s.o.Version}, nil }

func (s *Server) getMachine(*request) (any, error) {
	c := s.vm.Config()
	return machineOf(&c), nil
}

func (s *Server) getConfig(*request) (any, error) {
	c := s.vm.Config()
	answer := Config{
		Drives: []Drive{}, Nets: []Net{}, Machine: machineOf(&c),
		// There always is one.
		Entropy: &Entropy{},
	}
	for _, d := range c.Drives {
		answer.Drives = append(answer.Drives, driveOf(d))
	}
	for _, n := range c.Nets {
		answer.Nets = append(answer.Nets, netOf(n))
	}
	if c.Kernel != "" {
		answer.BootSource = &BootSource{Kernel: c.Kernel, Initrd: c.Initrd, BootArgs: &c.Cmdline}
	}
	if c.Balloon != nil {
		answer.Balloon = balloonOf(c.Balloon)
	}
	if c.Vsock != nil {
		answer.Vsock = &Vsock{CID: c.Vsock.CID, Path: c.Vsock.Path}
	}
	answer.Logger, answer.Metrics = s.logger.config(), s.metrics.Load()
	return answer, nil
}

// The following are resources as the API shows them.

func machineOf(c *vmm.Config) *Machine {
	m := &Machine{CPUs: c.CPUs, MemoryMiB: c.Memory >> 20, TrackDirty: c.TrackDirty, HugePages: noHugePages}
	if c.HugePages {
		m.HugePages = hugePages2M
	}
	return m
}

func driveOf(d vmm.Drive) Drive {
	return Drive{
		ID: d.ID, Path: d.Path, Root: &d.Root, ReadOnly: d.ReadOnly, PartUUID: d.PartUUID,
		CacheType: d.Cache, IOEngine: d.Engine, Limiter: limiterOf(d.Limit),
	}
}

func netOf(n vmm.Net) Net {
	a := Net{ID: n.ID, HostDev: n.Tap.Name, MTU: n.MTU, Receive: limiterOf(n.Receive), Send: limiterOf(n.Send)}
	if n.Kind == netflag.User {
		a.HostDev = string(n.Kind)
	}
	if n.MAC != noMAC {
		a.MAC = n.MAC.String()
	}
	return a
}

func balloonOf(c *balloon.Config) *Balloon {
	return &Balloon{
		AmountMiB: c.Target >> 20, DeflateOnOOM: c.DeflateOnOOM, Reporting: c.FreePageReporting,
		StatsInterval: uint64(c.StatsInterval / time.Second),
	}
}

func limiterOf(c limit.Config) *RateLimiter {
	l := &RateLimiter{bucketOf(c.Bandwidth), bucketOf(c.Operations)}
	if l.Bandwidth == nil && l.Ops == nil {
		return nil
	}
	return l
}

// bucketOf is the inverse of rate, as far as that rounds nothing.
func bucketOf(r limit.Rate) *TokenBucket {
	if r.PerSecond == 0 {
		return nil
	}
	// Without a burst it is what comes in a tenth of a second (see limit.Rate).
	size := r.Burst
	if size == 0 {
		size = max(1, r.PerSecond/10)
	}
	return &TokenBucket{
		Size: size, OneTimeBurst: r.OneTime,
		RefillTime: uint64(math.Round(float64(size) * 1000 / float64(r.PerSecond))),
	}
}
