package api

import "fmt"

// MaxFile bounds a configuration file in bytes.
const MaxFile = 1 << 20

// file is what a configuration file may have: that of GET /vm/config, and what is
// refused because godwit has nothing like it.
type file struct {
	Config
	CPUConfig any `json:"cpu-config"`
	MMDS      any `json:"mmds-config"`
	Pmem      any `json:"pmem"`
	Hotplug   any `json:"memory-hotplug"`
}

// Configure configures the guest by a configuration file, which has the bodies of the
// PUT requests in one object, as GET /vm/config gives it. The guest is not started.
func (s *Server) Configure(text []byte) error {
	var f file
	if err := decode(text, &f); err != nil {
		return err
	}
	for _, refused := range []struct {
		name  string
		value any
		why   string
	}{
		{"cpu-config", f.CPUConfig, noTemplates}, {"mmds-config", f.MMDS, noMMDS},
		{"pmem", f.Pmem, noPmem}, {"memory-hotplug", f.Hotplug, noHotplug},
	} {
		if list, ok := refused.value.([]any); refused.value != nil && (!ok || len(list) > 0) {
			return fmt.Errorf("%s: %s", refused.name, refused.why)
		}
	}
	// The machine first: the balloon is checked against it.
	var steps []func() error
	add := func(there bool, step func() error) {
		if there {
			steps = append(steps, step)
		}
	}
	add(f.Logger != nil, func() error { return s.setLogger(*f.Logger) })
	add(f.Metrics != nil, func() error { return s.setMetrics(*f.Metrics) })
	add(f.Machine != nil, func() error { return s.setMachine(*f.Machine) })
	add(f.BootSource != nil, func() error { return s.setBootSource(*f.BootSource) })
	for _, d := range f.Drives {
		add(true, func() error { return s.setDrive(d) })
	}
	for _, n := range f.Nets {
		add(true, func() error { return s.setNet(n) })
	}
	add(f.Vsock != nil, func() error { return s.setVsock(*f.Vsock) })
	add(f.Entropy != nil, func() error { return s.setEntropy(*f.Entropy) })
	add(f.Balloon != nil, func() error { return s.setBalloon(*f.Balloon) })
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Start starts a guest that Configure has configured.
func (s *Server) Start() error { return s.start() }
