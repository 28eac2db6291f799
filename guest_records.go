package topics

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/pocketbase/pocketbase/core"
)

// A record in the data of [Notify] may show more than its receivers may see:
// request hooks get it with flags for whoever sent the request. So each record
// is replaced by a copy that shows what a guest may see.

// maxSearched is how many values inside of types with their own JSON are
// searched for records.
const maxSearched = 100_000

var (
	recordType    = reflect.TypeFor[core.Record]()
	recordPointer = reflect.TypeFor[*core.Record]()
	proxyType     = reflect.TypeFor[core.RecordProxy]()
	marshalerType = reflect.TypeFor[json.Marshaler]()
	textType      = reflect.TypeFor[encoding.TextMarshaler]()
)

// withGuestRecords returns data with each record in it replaced. What is the
// caller's stays as it is: what holds a record is copied, the rest is shared.
// The error says where a record is that cannot be replaced.
func withGuestRecords(data any) (any, error) {
	if !mayHoldRecord(data, 0) {
		return data, nil
	}
	g := guestCopies{open: map[visit]bool{}, done: map[*core.Record]*core.Record{}}
	out, changed, err := g.value(reflect.ValueOf(data))
	switch {
	case err != nil:
		return nil, err
	case !changed:
		return data, nil
	default:
		return out.Interface(), nil
	}
}

// mayHoldRecord is a quick look at the usual values, without reflection on
// their parts. It may return false positives, never false negatives.
func mayHoldRecord(data any, depth int) bool {
	switch v := data.(type) {
	case nil, bool, string, int, int64, float64, json.Number, json.RawMessage:
		return false
	case map[string]any:
		for _, part := range v {
			if depth > 100 || mayHoldRecord(part, depth+1) {
				return true
			}
		}
		return false
	case []any:
		for _, part := range v {
			if depth > 100 || mayHoldRecord(part, depth+1) {
				return true
			}
		}
		return false
	default:
		return reachOf(reflect.TypeOf(data)).record
	}
}

// A reach says what values of a type may lead to.
type reach struct {
	record bool // a record, perhaps through an interface
	typed  bool // a record, without an interface
}

var reaches sync.Map // of [reflect.Type] to reach

func reachOf(t reflect.Type) reach {
	if r, ok := reaches.Load(t); ok {
		return r.(reach)
	}
	var r reach
	r.add(t, map[reflect.Type]bool{})
	reaches.Store(t, r)
	return r
}

func (r *reach) add(t reflect.Type, seen map[reflect.Type]bool) {
	if seen[t] || r.typed {
		return
	}
	seen[t] = true
	if t == recordType {
		*r = reach{record: true, typed: true}
		return
	}
	switch t.Kind() {
	case reflect.Interface:
		r.record = true
	case reflect.Pointer, reflect.Slice, reflect.Array:
		r.add(t.Elem(), seen)
	case reflect.Map:
		r.add(t.Key(), seen)
		r.add(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			r.add(t.Field(i).Type, seen)
		}
	}
}

// hasOwnJSON reports whether the type decides by itself what is sent.
func hasOwnJSON(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return t.Implements(marshalerType) || t.Implements(textType) ||
		t.Kind() != reflect.Interface && (p.Implements(marshalerType) || p.Implements(textType))
}

// guestCopies is one walk through the data.
type guestCopies struct {
	open map[visit]bool // what the walk is inside of
	done map[*core.Record]*core.Record
}

type visit struct {
	t      reflect.Type
	at     uintptr
	length int
}

// A recordError is a record that cannot be replaced, or data without an end.
type recordError struct {
	path   []string // innermost first
	reason string
}

func (e *recordError) Error() string {
	var where strings.Builder
	where.WriteString("the data")
	for i := len(e.path) - 1; i >= 0; i-- {
		where.WriteString(e.path[i])
	}
	return clip(where.String()) + " " + e.reason
}

func in(err error, part string) error {
	var at *recordError
	if errors.As(err, &at) {
		at.path = append(at.path, part)
	}
	return err
}

const (
	reasonCycle      = "is inside of itself"
	reasonOwnJSON    = "has a record inside of a type with its own JSON; send record.PublicExport(), or what of it is meant"
	reasonUnexported = "has a record inside of an embedded pointer to an unexported struct; send record.PublicExport(), or what of it is meant"
	reasonProxy      = "is a proxy of a record that shares its record; send record.PublicExport(), or what of it is meant"
)

// enter notes that the walk is inside of v, and returns how to leave it.
func (g *guestCopies) enter(v reflect.Value) (leave func(), err error) {
	at := visit{t: v.Type(), at: v.Pointer()}
	if v.Kind() == reflect.Slice {
		at.length = v.Len()
	}
	if g.open[at] {
		return nil, &recordError{reason: reasonCycle}
	}
	g.open[at] = true
	return func() { delete(g.open, at) }, nil
}

// value returns v, or a copy of the same type if there are records in it.
func (g *guestCopies) value(v reflect.Value) (out reflect.Value, changed bool, err error) {
	if !v.IsValid() || !reachOf(v.Type()).record {
		return v, false, nil
	}
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer, reflect.Map, reflect.Slice:
		if v.IsNil() {
			return v, false, nil
		}
	}

	t := v.Type()
	switch {
	case t == recordPointer:
		record, err := g.record(v.Interface().(*core.Record))
		return reflect.ValueOf(record), true, err
	case t == recordType:
		copied := reflect.New(t)
		copied.Elem().Set(v)
		record, err := g.record(copied.Interface().(*core.Record))
		if err != nil {
			return v, false, err
		}
		return reflect.ValueOf(record).Elem(), true, nil
	case t.Kind() == reflect.Interface:
		part, changed, err := g.value(v.Elem())
		if err != nil || !changed {
			return v, false, err
		}
		out = reflect.New(t).Elem()
		out.Set(part)
		return out, true, nil
	case t.Kind() == reflect.Struct && reflect.PointerTo(t).Implements(proxyType):
		return g.proxy(v)
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct && t.Implements(proxyType):
		out, changed, err := g.proxy(v.Elem())
		if err != nil || !changed {
			return v, false, err
		}
		return out.Addr().Convert(t), true, nil
	case t.Kind() != reflect.Pointer && hasOwnJSON(t):
		search := recordSearch{seen: map[visit]bool{}}
		if search.finds(v) {
			return v, false, &recordError{reason: reasonOwnJSON}
		}
		return v, false, nil
	}

	switch t.Kind() {
	case reflect.Pointer:
		return g.pointer(v)
	case reflect.Map:
		return g.mapping(v)
	case reflect.Slice, reflect.Array:
		return g.list(v)
	case reflect.Struct:
		return g.structure(v)
	default:
		return v, false, nil
	}
}

func (g *guestCopies) pointer(v reflect.Value) (reflect.Value, bool, error) {
	leave, err := g.enter(v)
	if err != nil {
		return v, false, err
	}
	defer leave()

	part, changed, err := g.value(v.Elem())
	if err != nil || !changed {
		return v, false, err
	}
	out := reflect.New(v.Type().Elem())
	out.Elem().Set(part)
	return out.Convert(v.Type()), true, nil
}

func (g *guestCopies) mapping(v reflect.Value) (out reflect.Value, changed bool, err error) {
	leave, err := g.enter(v)
	if err != nil {
		return v, false, err
	}
	defer leave()

	out = v
	for i := v.MapRange(); i.Next(); {
		search := recordSearch{seen: map[visit]bool{}}
		if reachOf(i.Key().Type()).record && search.finds(i.Key()) {
			return v, false, in(&recordError{reason: reasonOwnJSON}, " (a key)")
		}
		part, partChanged, err := g.value(i.Value())
		if err != nil {
			return v, false, in(err, "["+strconv.Quote(clip(fmt.Sprint(i.Key())))+"]")
		}
		if !partChanged {
			continue
		}
		if !changed {
			changed = true
			out = reflect.MakeMapWithSize(v.Type(), v.Len())
			for all := v.MapRange(); all.Next(); {
				out.SetMapIndex(all.Key(), all.Value())
			}
		}
		out.SetMapIndex(i.Key(), part)
	}
	return out, changed, nil
}

func (g *guestCopies) list(v reflect.Value) (out reflect.Value, changed bool, err error) {
	if v.Kind() == reflect.Slice {
		leave, err := g.enter(v)
		if err != nil {
			return v, false, err
		}
		defer leave()
	}

	out = v
	for i := range v.Len() {
		part, partChanged, err := g.value(v.Index(i))
		if err != nil {
			return v, false, in(err, "["+strconv.Itoa(i)+"]")
		}
		if !partChanged {
			continue
		}
		if !changed {
			changed = true
			if v.Kind() == reflect.Slice {
				out = reflect.MakeSlice(v.Type(), v.Len(), v.Len())
			} else {
				out = reflect.New(v.Type()).Elem()
			}
			reflect.Copy(out, v)
		}
		out.Index(i).Set(part)
	}
	return out, changed, nil
}

// A change is a new value for a field of a struct.
type change struct {
	field []int
	value reflect.Value
}

func (g *guestCopies) structure(v reflect.Value) (reflect.Value, bool, error) {
	changes, err := g.fields(v, nil)
	if err != nil || len(changes) == 0 {
		return v, false, err
	}
	out := reflect.New(v.Type()).Elem()
	out.Set(v)
	for _, c := range changes {
		out.FieldByIndex(c.field).Set(c.value)
	}
	return out, true, nil
}

// fields returns the changes of those fields that JSON shows.
func (g *guestCopies) fields(v reflect.Value, path []int) (changes []change, err error) {
	t := v.Type()
	for i := range t.NumField() {
		f, part := t.Field(i), v.Field(i)
		at := append(path[:len(path):len(path)], i)

		switch {
		case f.Tag.Get("json") == "-":
		case f.IsExported():
			out, changed, err := g.value(part)
			if err != nil {
				return nil, in(err, "."+f.Name)
			}
			if changed {
				changes = append(changes, change{at, out})
			}
		case f.Anonymous && f.Type.Kind() == reflect.Struct:
			// its exported fields are shown, unless it has its own JSON
			if hasOwnJSON(f.Type) {
				search := recordSearch{seen: map[visit]bool{}}
				if search.finds(part) {
					return nil, in(&recordError{reason: reasonOwnJSON}, "."+f.Name)
				}
				continue
			}
			more, err := g.fields(part, at)
			if err != nil {
				return nil, in(err, "."+f.Name)
			}
			changes = append(changes, more...)
		case f.Anonymous && f.Type.Kind() == reflect.Pointer && f.Type.Elem().Kind() == reflect.Struct && !part.IsNil():
			search := recordSearch{seen: map[visit]bool{}}
			if reachOf(f.Type).record && search.finds(part) {
				return nil, in(&recordError{reason: reasonUnexported}, "."+f.Name)
			}
		}
	}
	return changes, nil
}

// record returns the copy of r that shows what a guest may see.
func (g *guestCopies) record(r *core.Record) (*core.Record, error) {
	if done, ok := g.done[r]; ok {
		if done == nil {
			return nil, &recordError{reason: reasonCycle}
		}
		return done, nil
	}
	if r.Collection() == nil {
		return nil, &recordError{reason: "is a record without a collection"}
	}
	g.done[r] = nil

	// With the default flags. What r itself does not show stays hidden: the app
	// may have hidden it.
	shown := r.PublicExport()
	guest := r.Fresh()
	known := map[string]bool{}
	for _, f := range r.Collection().Fields {
		known[f.GetName()] = true
	}
	for _, name := range []string{core.FieldNameCollectionId, core.FieldNameCollectionName, core.FieldNameExpand} {
		known[name] = true
	}
	for name := range known {
		if _, ok := shown[name]; !ok {
			guest.Hide(name)
		}
	}

	for name, part := range shown {
		if name == core.FieldNameExpand {
			continue
		}
		out, changed, err := g.value(reflect.ValueOf(part))
		if err != nil {
			return nil, in(err, "."+name)
		}
		switch {
		case !known[name]: // the app shows its custom data
			guest.WithCustomData(true)
			if !changed {
				guest.SetRaw(name, part)
				continue
			}
			fallthrough
		case changed:
			guest.SetRaw(name, out.Interface())
		}
	}

	if _, ok := shown[core.FieldNameExpand]; ok {
		expand := r.Expand()
		out, _, err := g.value(reflect.ValueOf(expand))
		if err != nil {
			return nil, in(err, ".expand")
		}
		guest.SetExpand(out.Interface().(map[string]any))
	}

	g.done[r] = guest
	return guest, nil
}

// proxy copies a struct around a record.
func (g *guestCopies) proxy(v reflect.Value) (reflect.Value, bool, error) {
	out := reflect.New(v.Type())
	out.Elem().Set(v)
	proxy := out.Interface().(core.RecordProxy)
	record := proxy.ProxyRecord()
	if record == nil {
		return v, false, nil
	}
	guest, err := g.record(record)
	if err != nil {
		return v, false, err
	}

	proxy.SetProxyRecord(guest)
	original := reflect.New(v.Type())
	original.Elem().Set(v)
	if original.Interface().(core.RecordProxy).ProxyRecord() != record {
		proxy.SetProxyRecord(record)
		return v, false, &recordError{reason: reasonProxy}
	}

	// its JSON may show other records that it has
	search := recordSearch{seen: map[visit]bool{}, except: guest}
	if proxy.ProxyRecord() != guest || search.finds(out.Elem()) {
		return v, false, &recordError{reason: reasonOwnJSON}
	}
	return out.Elem(), true, nil
}

// recordSearch looks for records in values whose JSON cannot be foreseen.
type recordSearch struct {
	seen   map[visit]bool
	except *core.Record // not looked for
}

// finds may also return true for what cannot be searched.
func (s *recordSearch) finds(v reflect.Value) bool {
	if !v.IsValid() || !reachOf(v.Type()).record {
		return false
	}
	switch v.Kind() {
	case reflect.Interface:
		return s.finds(v.Elem())
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if v.IsNil() {
			return false
		}
		if s.except != nil && v.Type() == recordPointer && v.Pointer() == reflect.ValueOf(s.except).Pointer() {
			return false
		}
		at := visit{t: v.Type(), at: v.Pointer()}
		if v.Kind() == reflect.Slice {
			at.length = v.Len()
		}
		if s.seen[at] {
			return false
		}
		if s.seen[at] = true; len(s.seen) > maxSearched {
			return true
		}
	}

	switch v.Kind() {
	case reflect.Pointer:
		return s.finds(v.Elem())
	case reflect.Map:
		for i := v.MapRange(); i.Next(); {
			if s.finds(i.Key()) || s.finds(i.Value()) {
				return true
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if s.finds(v.Index(i)) {
				return true
			}
		}
	case reflect.Struct:
		if v.Type() == recordType {
			return true
		}
		if isGuarded(v.Type()) {
			// others may change it now: only its type can be looked at
			return reachOf(v.Type()).typed
		}
		for i := range v.NumField() {
			if s.finds(v.Field(i)) {
				return true
			}
		}
	}
	return false
}

// isGuarded reports whether a struct has a lock.
func isGuarded(t reflect.Type) bool {
	for i := range t.NumField() {
		f := t.Field(i).Type
		if f.Kind() == reflect.Struct && isGuarded(f) {
			return true
		}
		if f.Kind() == reflect.Pointer {
			f = f.Elem()
		}
		if pkg := f.PkgPath(); pkg == "sync" || pkg == "sync/atomic" {
			return true
		}
	}
	return false
}
