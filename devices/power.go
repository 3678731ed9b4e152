package devices

// Power is what a guest can ask of the machine as a whole. The functions are
// called on the vCPU thread that made the access, with no device lock held;
// they only note the request and return. A nil function ignores it.
type Power struct {
	// Off asks to switch the machine off.
	Off func()
	// Reset asks to start the machine anew.
	Reset func()
	// Panic tells that the guest's kernel has panicked.
	Panic func(PanicEvent)
}

func (p Power) off() {
	if p.Off != nil {
		p.Off()
	}
}

func (p Power) reset() {
	if p.Reset != nil {
		p.Reset()
	}
}

func (p Power) panicked(e PanicEvent) {
	if p.Panic != nil {
		p.Panic(e)
	}
}

// PanicEvent is what a guest said through pvpanic: a set of bits.
type PanicEvent uint8

const (
	// PanicHalted means that the guest stays where it is.
	PanicHalted PanicEvent = 1 << 0
	// PanicCrashKernel means that the guest goes on into its crash kernel,
	// which wants to write a dump: do not stop it.
	PanicCrashKernel PanicEvent = 1 << 1

	panicEvents = PanicHalted | PanicCrashKernel
)

// PVPanic is the one-byte pvpanic port. It has no state.
type PVPanic struct {
	power Power
}

// NewPVPanic makes the device; only Panic is called.
func NewPVPanic(p Power) *PVPanic { return &PVPanic{power: p} }

// Read tells which events the device understands. Linux drops the events that
// are not among them, and does nothing at all when the byte reads as zero.
func (p *PVPanic) Read(_ uint64, data []byte) {
	for i := range data {
		data[i] = byte(panicEvents)
	}
}

// Write takes an event.
func (p *PVPanic) Write(_ uint64, data []byte) {
	if e := PanicEvent(data[0]) & panicEvents; e != 0 {
		p.power.panicked(e)
	}
}
