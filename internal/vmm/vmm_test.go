package vmm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
)

// fixture is a VM whose events are noted.
type fixture struct {
	*VM
	t      *testing.T
	out    output
	mu     sync.Mutex
	events []EventKind
	heard  chan struct{} // has a token after an event
}

type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// kernel is a file with a micro-guest.
func kernel(t *testing.T) func(elf []byte, err error) string {
	return func(elf []byte, err error) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "guest.elf")
		if err == nil {
			err = os.WriteFile(path, elf, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// newVM makes a VM for the kernel, which the end of the test kills.
func newVM(t *testing.T, kernel string, change func(*Options)) *fixture {
	t.Helper()
	sys, err := kvm.Open("")
	if err != nil {
		testenv.Lacks(t, "%v", err)
	}
	t.Cleanup(func() { sys.Close() })
	f := &fixture{t: t, heard: make(chan struct{}, 1)}
	o := Options{System: sys, Name: "guest", Console: &f.out, Event: f.event}
	if change != nil {
		change(&o)
	}
	f.VM = New(t.Context(), o, Config{CPUs: 1, Memory: 32 << 20, Kernel: kernel})
	t.Cleanup(func() {
		f.Kill(nil)
		<-f.Done()
	})
	return f
}

func (f *fixture) event(e Event) {
	f.mu.Lock()
	f.events = append(f.events, e.Kind)
	f.mu.Unlock()
	select {
	case f.heard <- struct{}{}:
	default:
	}
}

func (f *fixture) told() []EventKind {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

// hears waits until there were n events of a kind.
func (f *fixture) hears(kind EventKind, n int) {
	f.t.Helper()
	late := time.After(time.Minute)
	for {
		count := 0
		for _, k := range f.told() {
			if k == kind {
				count++
			}
		}
		if count >= n {
			return
		}
		select {
		case <-f.heard:
		case <-late:
			f.t.Fatalf("%d times %q never came: %v", n, kind, f.told())
		}
	}
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// rounds is how often a guest that runs micro.Touch has gone through its memory.
func (f *fixture) rounds() uint64 {
	f.t.Helper()
	var n uint64
	f.must(f.Use(func(m *machine.Machine) (err error) {
		n, err = m.Memory().Uint64(micro.ResultStart + micro.ResultCount)
		return err
	}))
	return n
}

// runs waits until the guest has gone on.
func (f *fixture) runs() {
	f.t.Helper()
	from := f.rounds()
	for deadline := time.Now().Add(time.Minute); f.rounds() == from; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatal("the guest does not go on")
		}
	}
}

func TestEnds(t *testing.T) {
	elf := kernel(t)
	for _, tt := range []struct {
		name    string
		kernel  string
		outcome machine.Outcome
		fails   bool
		events  []EventKind
	}{
		{"power off", elf(micro.Exit(micro.PowerOff())), machine.PoweredOff, false, []EventKind{EventStarted, EventEnded}},
		{"reset", elf(micro.Exit(micro.Reset())), machine.Reset, false, []EventKind{EventStarted, EventEnded}},
		{"panic", elf(micro.Exit(micro.Stop{{Port: 0x505, Width: micro.Byte, Value: 1}})), machine.Panicked, false, []EventKind{EventStarted, EventPanicked, EventEnded}},
		{"crash", elf(micro.Fault()), 0, true, []EventKind{EventStarted, EventEnded}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vm := newVM(t, tt.kernel, func(o *Options) { o.NoReboot = true })
			vm.must(vm.Start())
			outcome, err := vm.Wait()
			if outcome != tt.outcome || (err != nil) != tt.fails {
				t.Errorf("%v, %v, want %v", outcome, err, tt.outcome)
			}
			if got := vm.told(); !slices.Equal(got, tt.events) {
				t.Errorf("events %v, want %v", got, tt.events)
			}
			if vm.Phase() != Ended || vm.Machine() != nil || vm.Cause() != context.Canceled {
				t.Errorf("phase %v, machine %v, cause %v", vm.Phase(), vm.Machine(), vm.Cause())
			}
		})
	}
}

// TestPhases tries everything in every phase.
func TestPhases(t *testing.T) {
	elf := kernel(t)(micro.Spin())
	request := SnapshotRequest{Path: "/nowhere"}
	for _, tt := range []struct {
		name   string
		bring  func(vm *fixture)
		errors map[string]error // by operation; nil is success
	}{
		{"Not started", func(*fixture) {}, map[string]error{
			"pause": ErrNotStarted, "resume": ErrNotStarted, "button": ErrNotStarted, "use": ErrNotStarted,
			"snapshot": ErrNotStarted, "configure": nil, "load": ErrConfigured, "start": nil,
		}},
		{"Running", func(vm *fixture) { vm.must(vm.Start()) }, map[string]error{
			"configure": ErrStarted, "start": ErrStarted, "load": ErrStarted, "button": nil, "use": nil,
			"snapshot": ErrNotPaused, "resume": nil, "pause": nil,
		}},
		{"Paused", func(vm *fixture) { vm.must(vm.Start()); vm.must(vm.Pause()) }, map[string]error{
			"configure": ErrStarted, "start": ErrStarted, "load": ErrStarted, "button": nil, "use": nil,
			"pause": nil, "resume": nil,
		}},
		{"Ended", func(vm *fixture) { vm.Kill(nil); vm.Wait() }, map[string]error{
			"configure": ErrEnded, "start": ErrEnded, "load": ErrEnded, "button": ErrEnded, "use": ErrEnded,
			"snapshot": ErrEnded, "pause": ErrEnded, "resume": ErrEnded,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			operations := []struct {
				name string
				do   func(vm *fixture) error
			}{
				{"button", func(vm *fixture) error { return vm.PowerButton() }},
				{"use", func(vm *fixture) error { return vm.Use(func(*machine.Machine) error { return nil }) }},
				{"snapshot", func(vm *fixture) error { _, err := vm.Snapshot(t.Context(), request); return err }},
				{"configure", func(vm *fixture) error { return vm.Configure(func(*Config) error { return nil }) }},
				{"load", func(vm *fixture) error { return vm.Load(t.Context(), LoadRequest{Path: "/nowhere"}) }},
				{"pause", func(vm *fixture) error { return vm.Pause() }},
				{"resume", func(vm *fixture) error { return vm.Resume() }},
				{"start", func(vm *fixture) error { return vm.Start() }},
			}
			vm := newVM(t, elf, nil)
			tt.bring(vm)
			if got := vm.Phase().String(); got != tt.name {
				t.Fatalf("phase %q, want %q", got, tt.name)
			}
			for _, op := range operations {
				if want, ok := tt.errors[op.name]; ok {
					if err := op.do(vm); !errors.Is(err, want) || want == nil && err != nil {
						t.Errorf("%s: %v, want %v", op.name, err, want)
					}
				}
			}
		})
	}
}

func TestPause(t *testing.T) {
	elf := kernel(t)(micro.Touch(0x40_0000, 0x41_0000, 4096, micro.Forever, nil))
	vm := newVM(t, elf, nil)
	vm.must(vm.Start())
	for range 20 {
		vm.must(vm.Pause())
		before := vm.rounds()
		if vm.Phase() != Paused || vm.rounds() != before {
			t.Fatalf("phase %v, the guest has gone on from %d to %d", vm.Phase(), before, vm.rounds())
		}
		vm.must(vm.Pause())
		vm.must(vm.Resume())
		vm.must(vm.Resume())
		vm.runs()
	}
	vm.must(vm.Pause())
	vm.must(vm.Resume())
	vm.Kill(nil)
	vm.Wait()
	for i, kind := range vm.told()[1:43] {
		if want := []EventKind{EventPaused, EventResumed}[i%2]; kind != want {
			t.Fatalf("event %d is %v, want %v", i, kind, want)
		}
	}
}

// TestKillPaused ends guests that stand still.
func TestKillPaused(t *testing.T) {
	vm := newVM(t, kernel(t)(micro.Spin()), nil)
	vm.must(vm.Start())
	vm.must(vm.Pause())
	cause := errors.New("enough")
	vm.Kill(cause)
	vm.Kill(nil)
	if outcome, err := vm.Wait(); outcome != machine.Killed || err != nil || vm.Cause() != cause {
		t.Errorf("%v, %v, cause %v", outcome, err, vm.Cause())
	}
}

// TestReboots has a guest that does nothing but reboot, while others pause, use and
// resume it. A guest that is paused does not reboot.
func TestReboots(t *testing.T) {
	vm := newVM(t, kernel(t)(micro.Exit(micro.Reset())), nil)
	vm.must(vm.Start())
	vm.hears(EventRebooted, 3)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 10 {
				if err := errors.Join(vm.Pause(), vm.Use(func(m *machine.Machine) error {
					_, err := m.Memory().Uint64(micro.ResultStart)
					return err
				}), vm.Resume()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	vm.must(vm.Pause())
	// The one that was on its way, and no more.
	count := func() (n int) {
		for _, k := range vm.told() {
			if k == EventRebooted {
				n++
			}
		}
		return n
	}
	vm.must(vm.Use(func(*machine.Machine) error { return nil }))
	before := count()
	time.Sleep(50 * time.Millisecond)
	if n := count(); n > before+1 {
		t.Errorf("%d reboots while it was paused", n-before)
	}
	vm.must(vm.Resume())
	vm.hears(EventRebooted, before+3)
	vm.Kill(nil)
	if outcome, err := vm.Wait(); outcome != machine.Killed && outcome != machine.Reset || err != nil {
		t.Errorf("%v, %v", outcome, err)
	}
}

// TestRebootFails takes the kernel away from a guest that reboots.
func TestRebootFails(t *testing.T) {
	elf := kernel(t)(micro.Exit(micro.Reset()))
	vm := newVM(t, elf, func(o *Options) {
		o.Built = func() error { return os.Remove(elf) }
	})
	vm.must(vm.Start())
	outcome, err := vm.Wait()
	if outcome != machine.Reset || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "reboot") {
		t.Errorf("%v, %v", outcome, err)
	}
}

// TestStartFails starts a guest that cannot be, and then one that can.
func TestStartFails(t *testing.T) {
	good := kernel(t)(micro.Exit(micro.PowerOff()))
	refuse := errors.New("refused")
	refused := false
	vm := newVM(t, "/no/such/kernel", func(o *Options) {
		o.Built = func() error {
			if !refused {
				refused = true
				return refuse
			}
			return nil
		}
	})
	if err := vm.Start(); !errors.Is(err, os.ErrNotExist) || vm.Phase() != NotStarted {
		t.Errorf("%v, phase %v", err, vm.Phase())
	}
	vm.must(vm.Configure(func(c *Config) error { c.Kernel = good; return nil }))
	if err := vm.Start(); !errors.Is(err, refuse) || vm.Phase() != NotStarted {
		t.Errorf("%v, phase %v", err, vm.Phase())
	}
	vm.must(vm.Start())
	if outcome, err := vm.Wait(); outcome != machine.PoweredOff || err != nil {
		t.Errorf("%v, %v", outcome, err)
	}
}

func TestKillBeforeStart(t *testing.T) {
	vm := New(t.Context(), Options{}, Config{})
	if err := vm.Start(); err == nil || !strings.Contains(err.Error(), "KVM") {
		t.Errorf("start without KVM: %v", err)
	}
	vm.Kill(nil)
	if outcome, err := vm.Wait(); outcome != machine.Killed || err != nil {
		t.Errorf("%v, %v", outcome, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	vm = New(ctx, Options{}, Config{})
	cancel()
	vm.Wait()
}

func TestConfigure(t *testing.T) {
	vm := New(t.Context(), Options{Name: "x"}, Config{CPUs: 1, Drives: []Drive{{ID: "a"}}})
	defer vm.Kill(nil)
	wrong := errors.New("wrong")
	if err := vm.Configure(func(c *Config) error { c.CPUs, c.Drives[0].ID = 9, "b"; return wrong }); err != wrong {
		t.Error(err)
	}
	if c := vm.Config(); c.CPUs != 1 || c.Drives[0].ID != "a" {
		t.Errorf("a change that failed has changed it: %+v", c)
	}
	vm.Config().Drives[0].ID = "c"
	if err := vm.Configure(func(c *Config) error { c.CPUs = 2; return nil }); err != nil {
		t.Error(err)
	}
	if c := vm.Config(); c.CPUs != 2 || c.Drives[0].ID != "a" || vm.Name() != "x" {
		t.Errorf("%+v of %s", c, vm.Name())
	}
}

func TestCmdline(t *testing.T) {
	disk := func(root, ro bool, part string) Drive {
		return Drive{Root: root, PartUUID: part, Config: blk.Config{ReadOnly: ro}}
	}
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{Cmdline: "a b"}, "a b"},
		{Config{Cmdline: "a", Drives: []Drive{disk(true, false, "")}}, "a"},
		{Config{Cmdline: "a", RootWords: true}, "a"},
		{Config{Cmdline: "a", RootWords: true, Drives: []Drive{disk(true, false, "")}}, "a root=/dev/vda rw"},
		{Config{RootWords: true, Drives: []Drive{disk(false, true, ""), disk(true, true, "")}}, "root=/dev/vdb ro"},
		{Config{RootWords: true, Drives: []Drive{disk(true, false, "0eaa91a0-01")}}, "root=PARTUUID=0eaa91a0-01 rw"},
	} {
		if got := tt.c.cmdline(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestConsole(t *testing.T) {
	vm := newVM(t, kernel(t)(micro.Hello("hello\n", micro.PowerOff())), nil)
	typed := make(chan error, 2)
	go func() {
		_, err := vm.Input(t.Context(), []byte("early"))
		typed <- err
		_, err = vm.Input(t.Context(), []byte("late"))
		for err == nil {
			_, err = vm.Input(t.Context(), []byte("late"))
		}
		typed <- err
	}()
	vm.must(vm.Start())
	vm.Wait()
	if got := vm.out.String(); got != "hello\n" {
		t.Errorf("the guest said %q", got)
	}
	<-typed
	if err := <-typed; !errors.Is(err, ErrEnded) {
		t.Errorf("input after the end: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	vm = newVM(t, "/no/such/kernel", nil)
	if _, err := vm.Input(ctx, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("input without a guest: %v", err)
	}
}

// TestIdentity asks once, also over reboots.
func TestIdentity(t *testing.T) {
	asked := 0
	vm := newVM(t, kernel(t)(micro.Exit(micro.Reset())), func(o *Options) {
		o.Identify = func(c Config) (Identity, error) {
			asked++
			return Identity{Name: "known"}, nil
		}
	})
	vm.must(vm.Start())
	vm.hears(EventRebooted, 2)
	vm.Kill(nil)
	vm.Wait()
	if asked != 1 || vm.Name() != "known" {
		t.Errorf("asked %d times, name %q", asked, vm.Name())
	}
	unknown := errors.New("unknown")
	vm = newVM(t, kernel(t)(micro.Spin()), func(o *Options) {
		o.Identify = func(Config) (Identity, error) { return Identity{}, unknown }
	})
	if err := vm.Start(); !errors.Is(err, unknown) || vm.Name() != "guest" {
		t.Errorf("%v, name %q", err, vm.Name())
	}
}

func TestRequestPaths(t *testing.T) {
	vm := newVM(t, "none", nil)
	for _, tt := range []struct{ path, memory, want string }{
		{"", "", "missing"},
		{"/x/snap", "/x/mem", "one folder"},
		{"/x/snap", "/x/snap/./memory", ErrNotStarted.Error()},
		{"/x/snap", "", ErrNotStarted.Error()},
	} {
		_, err := vm.Snapshot(t.Context(), SnapshotRequest{Path: tt.path, Memory: tt.memory})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q, %q: %v, want %q", tt.path, tt.memory, err, tt.want)
		}
	}
}
