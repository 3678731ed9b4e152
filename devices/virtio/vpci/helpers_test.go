package vpci

import (
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices"
	"github.com/godwit-vmm/godwit/devices/pci"
	"github.com/godwit-vmm/godwit/devices/virtio"
	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/godwit-vmm/godwit/memory"
)

// Offsets of the common configuration structure, as a driver knows them.
const (
	regFeatureSelect = 0
	regFeature       = 4
	regAcceptSelect  = 8
	regAccept        = 12
	regConfigVector  = 16
	regNumQueues     = 18
	regStatus        = 20
	regGeneration    = 21
	regQueueSelect   = 22
	regQueueSize     = 24
	regQueueVector   = 26
	regQueueEnable   = 28
	regNotifyOffset  = 30
	regQueueDesc     = 32
	regQueueAvail    = 40
	regQueueUsed     = 48
)

// widths are those of the registers above.
var widths = map[int]int{
	regFeatureSelect: 4, regFeature: 4, regAcceptSelect: 4, regAccept: 4, regConfigVector: 2, regNumQueues: 2,
	regStatus: 1, regGeneration: 1, regQueueSelect: 2, regQueueSize: 2, regQueueVector: 2, regQueueEnable: 2,
	regNotifyOffset: 2, regQueueDesc: 8, regQueueAvail: 8, regQueueUsed: 8,
}

// echoDevice copies what the driver sends back to it.
type echoDevice struct {
	queues   int
	features uint64
	config   [8]byte

	startErr error
	// hold, if not nil, keeps each request back until it is closed; taken
	// gets a value when a request has been taken.
	hold  chan struct{}
	taken chan struct{}

	loop   *virtio.Loop
	driver virtio.Driver

	mu sync.Mutex
	// answered, if not nil, is called after each answer, with mu held.
	answered               func()
	starts, stops, resets  int
	lastDriver             virtio.Driver
	configReads, configOut int
}

func (d *echoDevice) Type() virtio.DeviceType { return virtio.TypeConsole }
func (d *echoDevice) Features() uint64        { return d.features }

func (d *echoDevice) QueueSizes() []uint16 {
	sizes := make([]uint16, d.queues)
	for i := range sizes {
		sizes[i] = 64 >> min(i, 6)
	}
	return sizes
}

func (d *echoDevice) ReadConfig(offset uint64, p []byte) {
	d.configReads++
	virtio.ReadConfig(d.config[:], offset, p)
}

func (d *echoDevice) WriteConfig(offset uint64, p []byte) {
	d.configOut++
	if offset < uint64(len(d.config)) {
		copy(d.config[offset:], p)
	}
}

func (d *echoDevice) Start(driver virtio.Driver) error {
	d.mu.Lock()
	d.starts++
	d.lastDriver = driver
	d.mu.Unlock()
	if d.startErr != nil {
		return d.startErr
	}
	loop, err := virtio.NewLoop()
	if err != nil {
		return err
	}
	d.loop, d.driver = loop, driver
	for _, q := range driver.Queues {
		if q == nil {
			continue
		}
		if err := loop.AddQueue(q, func() { d.serve(q) }); err != nil {
			return err
		}
		q.Kick()
	}
	loop.Start()
	return nil
}

func (d *echoDevice) serve(q *virtio.Queue) {
	var c virtio.Chain
	for {
		q.DisableKicks()
		for {
			ok, err := q.Pop(&c)
			if err != nil {
				d.driver.Fail(err)
				return
			}
			if !ok {
				break
			}
			if d.hold != nil {
				d.taken <- struct{}{}
				<-d.hold
			}
			p := make([]byte, c.ReadLen)
			c.CopyOut(0, p)
			q.Push(c.Head, uint32(c.CopyIn(0, p)))
			d.mu.Lock()
			if d.answered != nil {
				d.answered()
			}
			d.mu.Unlock()
		}
		q.Notify()
		more, err := q.EnableKicks()
		if err != nil {
			d.driver.Fail(err)
			return
		}
		if !more {
			return
		}
	}
}

func (d *echoDevice) Stop() {
	d.mu.Lock()
	d.stops++
	d.mu.Unlock()
	if d.loop == nil {
		return
	}
	d.loop.Stop()
	_ = d.loop.Close()
	d.loop = nil
}

func (d *echoDevice) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resets++
}

func (d *echoDevice) counts() (starts, stops, resets int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starts, d.stops, d.resets
}

// bells are Doorbells that note what is assigned.
type bells struct {
	at   map[int]memory.GPA // by eventfd
	log  int
	deny bool
}

func (b *bells) Assign(fd int, at memory.GPA) error {
	b.log++
	if b.deny {
		return errors.New("no doorbell today")
	}
	if _, ok := b.at[fd]; ok {
		return errors.New("assigned already")
	}
	b.at[fd] = at
	return nil
}

func (b *bells) Remove(fd int, at memory.GPA) error {
	b.log++
	if b.at[fd] != at {
		return errors.New("not assigned there")
	}
	delete(b.at, fd)
	return nil
}

// rig is a machine with one device, seen by a driver.
type rig struct {
	t     testing.TB
	mmio  devices.Bus
	bus   *pci.Bus
	f     *Function
	mem   *virtiotest.Memory
	bells *bells
	slot  int
	// messages gets the data of each MSI.
	messages chan uint32
	warnings chan error
	queues   []*virtiotest.Queue
}

// barBase is where the first function's registers are, msixBase its table.
const (
	barBase  = uint64(memory.PCIWindowStart)
	msixBase = barBase + barSize
)

func newRig(t testing.TB, d virtio.Device, mem *virtiotest.Memory) *rig {
	t.Helper()
	if mem == nil {
		mem = virtiotest.NewMemory(t, 16<<20)
	}
	r := &rig{t: t, mem: mem, bells: &bells{at: make(map[int]memory.GPA)}, messages: make(chan uint32, 1000), warnings: make(chan error, 100)}
	r.bus = pci.NewBus(pci.BusConfig{
		MMIO: &r.mmio, RAM: mem.Ranges(),
		Window32: memory.Range{Start: memory.PCIWindowStart, Size: uint64(memory.PCIWindowEnd - memory.PCIWindowStart)},
	})
	var err error
	r.f, err = New(Config{
		Name: "test", Device: d, Mem: mem.Guest, Doorbells: r.bells,
		Vectors: pci.NewSoftwareVectors(NumVectors(d), func(m devices.MSI) error {
			select {
			case r.messages <- m.Data:
			default: // nobody looks
			}
			return nil
		}),
		Warn: func(err error) { r.warnings <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.f.Close(); err != nil {
			t.Error(err)
		}
		if err := r.f.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	})
	if r.slot, err = r.bus.Add(r.f.PCI()); err != nil {
		t.Fatal(err)
	}
	if err := r.mmio.Map("ECAM", uint64(memory.ECAMStart), memory.ECAMSize, r.bus.ECAM()); err != nil {
		t.Fatal(err)
	}
	return r
}

// decode switches memory decoding on or off.
func (r *rig) decode(on bool) {
	const command, memoryAndMaster = 4, 6
	r.configWrite(command, 2, memoryAndMaster*bit(on))
}

func (r *rig) configRead(reg, width int) uint64 {
	return r.read(uint64(memory.ECAMStart)+uint64(r.slot)<<15+uint64(reg), width)
}

func (r *rig) configWrite(reg, width int, x uint64) {
	r.write(uint64(memory.ECAMStart)+uint64(r.slot)<<15+uint64(reg), width, x)
}

func (r *rig) read(addr uint64, width int) uint64 {
	var p [8]byte
	r.mmio.Read(addr, p[:width])
	return binary.LittleEndian.Uint64(p[:])
}

func (r *rig) write(addr uint64, width int, x uint64) {
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], x)
	r.mmio.Write(addr, p[:width])
}

// get and set access a common register by its own width.
func (r *rig) get(reg int) uint64    { return r.read(barBase+commonPage+uint64(reg), widths[reg]) }
func (r *rig) set(reg int, x uint64) { r.write(barBase+commonPage+uint64(reg), widths[reg], x) }
func (r *rig) kick(queue int)        { r.write(barBase+notifyPage+4*uint64(queue), 2, uint64(queue)) }

func (r *rig) wantStatus(what string, want uint64) {
	r.t.Helper()
	if got := r.get(regStatus); got != want {
		r.t.Errorf("%s: status %#x, want %#x", what, got, want)
	}
}

func (r *rig) setFeatures(features uint64) {
	for i := range uint64(2) {
		r.set(regAcceptSelect, i)
		r.set(regAccept, features>>(32*i)&0xffff_ffff)
	}
}

// negotiate goes to FEATURES_OK.
func (r *rig) negotiate(features uint64) {
	r.t.Helper()
	r.decode(true)
	r.set(regStatus, 0)
	r.set(regStatus, statusAcknowledge)
	r.set(regStatus, statusAcknowledge|statusDriver)
	r.setFeatures(features)
	r.set(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK)
	r.wantStatus("after the features", statusAcknowledge|statusDriver|statusFeaturesOK)
}

// addQueues lays all queues out, tells the device, and enables them, with
// vector i+1 for queue i.
func (r *rig) addQueues() {
	r.t.Helper()
	r.queues = nil
	for i := range int(r.get(regNumQueues)) {
		r.set(regQueueSelect, uint64(i))
		q := virtiotest.NewQueue(r.t, r.mem, uint16(r.get(regQueueSize)))
		q.Kick = func() { r.kick(i) }
		r.place(q)
		r.set(regQueueVector, uint64(i+1))
		r.set(regQueueEnable, 1)
		if r.get(regQueueEnable) != 1 {
			r.t.Fatalf("queue %d is not enabled", i)
		}
		r.queues = append(r.queues, q)
	}
}

// place tells the device where the selected queue is.
func (r *rig) place(q *virtiotest.Queue) {
	r.set(regQueueSize, uint64(q.Size))
	r.set(regQueueDesc, uint64(q.Desc))
	r.set(regQueueAvail, uint64(q.Avail))
	r.set(regQueueUsed, uint64(q.Used))
}

const running = statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK

// start goes all the way, with MSI-X: vector n has message data 0x40+n.
func (r *rig) start(features uint64) {
	r.t.Helper()
	r.negotiate(features)
	r.enableMSIX()
	r.set(regConfigVector, 0)
	r.addQueues()
	r.set(regStatus, running)
}

func (r *rig) enableMSIX() {
	for n := range uint64(r.f.msix.Vectors()) {
		r.write(msixBase+16*n, 8, 0xfee00000)
		r.write(msixBase+16*n+8, 8, 0x40+n)
	}
	r.configWrite(r.capability(pci.CapabilityMSIX, 0)+2, 2, 1<<15)
}

// capability finds a capability by ID, and the vendor's by type as well.
func (r *rig) capability(id, kind uint64) int {
	r.t.Helper()
	at := int(r.configRead(0x34, 1))
	for ; at != 0; at = int(r.configRead(at+1, 1)) {
		if r.configRead(at, 1) == id && (id != pci.CapabilityVendor || r.configRead(at+3, 1) == kind) {
			return at
		}
	}
	r.t.Fatalf("no capability %#x of type %d", id, kind)
	return 0
}

// awaitMessage waits for the MSI with the given data.
func (r *rig) awaitMessage(data uint32) {
	r.t.Helper()
	timeout := time.After(virtiotest.Patience)
	for {
		select {
		case got := <-r.messages:
			if got == data {
				return
			}
		case <-timeout:
			r.t.Fatalf("message %#x did not come", data)
		}
	}
}

// echo sends a request through a queue and waits for the interrupt.
func (r *rig) echo(queue int, text string) {
	r.t.Helper()
	if got := r.try(queue, text); got != text {
		r.t.Fatalf("sent %q, got %q", text, got)
	}
}

// send puts a request into the queue without a kick.
func (r *rig) send(queue int, text string) (answer memory.GPA) {
	r.t.Helper()
	out, in := r.mem.Put([]byte(text)), r.mem.Alloc(64, 16)
	q := r.queues[queue]
	q.SetUsedEvent(q.UsedIndex())
	q.Publish(q.Chain(virtiotest.Buffer{GPA: out, Len: uint32(len(text))}, virtiotest.Buffer{GPA: in, Len: 64, Write: true}))
	return in
}

func (r *rig) try(queue int, text string) string {
	r.t.Helper()
	in := r.send(queue, text)
	r.kick(queue)
	return r.receive(queue, in)
}

func (r *rig) receive(queue int, in memory.GPA) string {
	r.t.Helper()
	for {
		if _, n, ok := r.queues[queue].Take(); ok {
			return string(r.mem.Get(in, int(n)))
		}
		r.awaitMessage(0x41 + uint32(queue))
	}
}
